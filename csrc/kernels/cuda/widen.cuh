// Codes of 8 bits to numbers that can be multiplied.
#pragma once

#include "../numeric.h"
#include "tile.h"

namespace mqa::kernels::cuda {

// Numbers that widen gives are codes divided by this.
template <class Query, class Stored>
inline constexpr float kCodeFactor =
    std::is_same_v<Stored, e4m3> && std::is_same_v<Query, f16> ? 256.f : 1.f;

// Bytes kFirst and kSecond of four codes to a pair of 16-bit numbers.
template <class Query, class Stored, int kFirst, int kSecond>
DEVICE uint32_t widen(uint32_t codes) {
  if constexpr (std::is_same_v<Stored, int8_t>) {
    // Below a byte that makes it the lower part of a number's mantissa.
    constexpr uint32_t kLowBytes = kFirst | 4 << 4 | kSecond << 8 | 4 << 12;
    if constexpr (std::is_same_v<Query, f16>) {
      const uint32_t x = permute_bytes(codes ^ 0x80808080u, 0x64646464u, kLowBytes);
      return subtract_f16x2(x, 0x64806480u);  // (1024 + 128 + code) - 1152
    } else {
      // 128 + the code's lower 7 bits, less 256 where the code is negative or else 128.
      const uint32_t x = permute_bytes(codes, 0x43434343u, kLowBytes);
      return fma_bf16x2(x & 0xff80ff80u, 0xbf80bf80u, x & 0xff7fff7fu);
    }
  } else {
    constexpr uint32_t kHighBytes = 4 | kFirst << 4 | 4 << 8 | kSecond << 12;
    const uint32_t x = permute_bytes(codes, 0, kHighBytes);
    const uint32_t sign = x & 0x80008000u;
    if constexpr (std::is_same_v<Query, f16>) {
      const uint32_t magnitude = (x & 0x7f007f00u) >> 1;
      const uint32_t nan = (magnitude + 0x00800080u) & 0x40004000u;
      return sign | magnitude | nan;
    } else {
      const uint32_t magnitude = (x & 0x7f007f00u) >> 4;
      const uint32_t nan = (magnitude + 0x00100010u) & 0x08000800u;
      return fma_bf16x2(sign | magnitude | ((nan << 4) - nan), 0x7b807b80u,
                        0x80008000u);  // 2^120 x
    }
  }
}

// The lowest byte.
template <class Stored>
DEVICE float widen_to_float(uint32_t codes) {
  if constexpr (std::is_same_v<Stored, int8_t>) return static_cast<int8_t>(codes);
  return float8_to_float(static_cast<uint8_t>(codes));
}

// Four neighbouring elements at an address in shared memory.
template <class Stored>
DEVICE void load_four(int address, float (&to)[4]) {
  const unsigned char* const from = dynamic_smem() + address;
  if constexpr (std::is_same_v<Stored, float>) {
    const float4 x = smem_load<float4>(from);
    to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
  } else {
    const uint32_t codes = smem_load<uint32_t>(from);
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = widen_to_float<Stored>(codes >> 8 * i);
  }
}

}  // namespace mqa::kernels::cuda
