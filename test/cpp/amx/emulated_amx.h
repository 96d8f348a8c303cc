// The tile registers of Intel AMX in memory, for machines without them: in the place of
// csrc/kernels/cpu/amx.h, whose functions these are.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace mqa::kernels::cpu {
namespace {

constexpr int kTileRegisterRows = 16, kTileRowBytes = 64;

struct TileRegister {
  char rows[kTileRegisterRows][kTileRowBytes];
};

thread_local TileRegister tile_registers[8];
thread_local bool tile_registers_are_ready = false;

class TileRegisters {
 public:
  TileRegisters() {
    tile_registers_are_ready = true;
    std::memset(tile_registers, 0xff, sizeof tile_registers);  // NaN
  }
  ~TileRegisters() { tile_registers_are_ready = false; }
  TileRegisters(const TileRegisters&) = delete;
};

template <int kTile>
inline TileRegister& tile_register() {
  if (!tile_registers_are_ready) {
    std::fputs("a tile register is used without TileRegisters\n", stderr);
    std::abort();
  }
  return tile_registers[kTile];
}

template <int kTile>
inline void tile_zero() {
  tile_register<kTile>() = {};
}

template <int kTile>
inline void tile_load(const void* from, int64_t stride) {
  for (int r = 0; r < kTileRegisterRows; ++r) {
    std::memcpy(tile_register<kTile>().rows[r], static_cast<const char*>(from) + r * stride,
                kTileRowBytes);
  }
}

template <int kTile>
inline void tile_store(void* to, int64_t stride) {
  for (int r = 0; r < kTileRegisterRows; ++r) {
    std::memcpy(static_cast<char*>(to) + r * stride, tile_register<kTile>().rows[r], kTileRowBytes);
  }
}

// The order of the sums is that of TDPBF16PS in Intel's manual: even and odd elements on their own.
template <int kC, int kA, int kB>
inline void tile_multiply_add() {
  constexpr int kPairs = kTileRowBytes / 4;
  using Row = std::array<uint32_t, kPairs>;
  const auto row_of = [](const TileRegister& tile, int r) {
    return std::bit_cast<Row>(std::to_array(tile.rows[r]));
  };
  const auto even = [](uint32_t pair) { return std::bit_cast<float>(pair << 16); };
  const auto odd = [](uint32_t pair) { return std::bit_cast<float>(pair & 0xffff0000); };
  for (int m = 0; m < kTileRegisterRows; ++m) {
    float evens[kPairs] = {}, odds[kPairs] = {}, sums[kPairs];
    const Row a = row_of(tile_register<kA>(), m);
    for (int k = 0; k < kPairs; ++k) {
      const Row b = row_of(tile_register<kB>(), k);
      for (int n = 0; n < kPairs; ++n) {
        evens[n] = __builtin_fmaf(even(a[k]), even(b[n]), evens[n]);
        odds[n] = __builtin_fmaf(odd(a[k]), odd(b[n]), odds[n]);
      }
    }
    std::memcpy(sums, tile_register<kC>().rows[m], sizeof sums);
    for (int n = 0; n < kPairs; ++n) sums[n] += evens[n] + odds[n];
    std::memcpy(tile_register<kC>().rows[m], sums, sizeof sums);
  }
}

}  // namespace
}  // namespace mqa::kernels::cpu
