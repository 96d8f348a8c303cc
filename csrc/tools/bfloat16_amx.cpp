#include <immintrin.h>

#include "probes.h"

namespace mqa::floor {
namespace {

// The operand of ldtilecfg: every tile is 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

void multiply(int64_t iterations) {
  const TileConfig config;
  // gcc 12's _tile_loadconfig does not say that it reads 64 bytes.
  asm volatile("ldtilecfg %0" : : "m"(config));
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int64_t i = 0; i < iterations; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
}

}  // namespace

constexpr int kFlopsPerTile = 16 * 16 * 32 * 2;
const Probe bfloat16_amx = {4 * kFlopsPerTile, multiply};

}  // namespace mqa::floor
