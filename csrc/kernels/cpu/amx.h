// The tile registers of Intel AMX: eight of 16 rows of 64 bytes.
//
// As inline assembly, since gcc 12's intrinsics want literal register numbers and do not tell the
// compiler that they touch memory.
#pragma once

#if defined(MQA_EMULATED_AMX)
#include "emulated_amx.h"  // of the tests
#else

#include <cstdint>

namespace mqa::kernels::cpu {
namespace {

// Tile registers can be used while one of these lives.
class TileRegisters {
 public:
  TileRegisters() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~TileRegisters() { asm volatile("tilerelease"); }
  TileRegisters(const TileRegisters&) = delete;
};

template <int kTile>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}

// `stride`: bytes from row to row.
template <int kTile>
inline void tile_load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
}

template <int kTile>
inline void tile_store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(kTile) : "memory");
}

// c += a * b: a has rows of 32 bfloat16, b has 16 rows of 16 pairs, c is float32.
template <int kC, int kA, int kB>
inline void tile_multiply_add() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
}

}  // namespace
}  // namespace mqa::kernels::cpu

#endif
