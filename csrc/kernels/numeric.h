// Conversions between float and the 16- and 8-bit storage formats, as branch-free bit arithmetic
// that compilers vectorise. Rounding is to nearest even.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace mqa::kernels {
namespace {  // internal linkage: every ISA that includes this compiles its own copy

inline float bfloat16_to_float(uint16_t x) { return std::bit_cast<float>(uint32_t{x} << 16); }

inline uint16_t float_to_bfloat16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x40;
  return static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? quiet_nan : rounded);
}

// Moving the exponent and mantissa into place leaves a bias that a multiplication by a power of two
// corrects, subnormals included.
inline float float16_to_float(uint16_t x) {
  const uint32_t magnitude = uint32_t{x} & 0x7fff;
  const uint32_t finite = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude << 13) * 0x1p112f);
  const uint32_t bits = magnitude >= 0x7c00 ? 0x7f800000 | (magnitude << 13) : finite;
  return std::bit_cast<float>(bits | (uint32_t{x} & 0x8000) << 16);
}

inline uint16_t float_to_float16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t magnitude = bits & 0x7fffffff;
  // Below 2^-14 the result is subnormal: adding 0.5 lets the addition round at 2^-24.
  const uint32_t subnormal =
      std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000;
  const uint32_t normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - 0x38000000) >> 13;
  uint32_t half = magnitude < 0x38800000 ? subnormal : normal;
  half = magnitude >= 0x47800000 || half > 0x7c00 ? 0x7c00 : half;
  half = magnitude > 0x7f800000 ? 0x7e00 : half;
  return static_cast<uint16_t>(half | (bits >> 16 & 0x8000));
}

// float8_e4m3fn: bias 7, no infinity, NaN is 0x7f, largest value 448.
inline float float8_to_float(uint8_t x) {
  const uint32_t magnitude = uint32_t{x} & 0x7f;
  const uint32_t finite = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude << 20) * 0x1p120f);
  const uint32_t bits = magnitude == 0x7f ? 0x7fc00000 : finite;
  return std::bit_cast<float>(bits | (uint32_t{x} & 0x80) << 24);
}

// Values beyond +-448 become +-448.
inline uint8_t float_to_float8(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t magnitude = bits & 0x7fffffff;
  // Below 2^-6 the result is subnormal: adding 2^14 lets the addition round at 2^-9.
  const uint32_t subnormal =
      std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0x1p14f) - 0x46800000;
  const uint32_t normal = (magnitude + 0x7ffff + ((magnitude >> 20) & 1) - 0x3c000000) >> 20;
  uint32_t code = magnitude < 0x3c800000 ? subnormal : normal;
  code = magnitude >= 0x43e00000 ? 0x7e : code;
  code = magnitude > 0x7f800000 ? 0x7f : code;
  return static_cast<uint8_t>(code | (bits >> 24 & 0x80));
}

// Values beyond +-127 become +-127; NaN becomes 0.
inline int8_t float_to_int8(float x) {
  const float clamped = x > 127.f ? 127.f : x > -127.f ? x : x == x ? -127.f : 0.f;
  return static_cast<int8_t>(std::nearbyint(clamped));
}

}  // namespace
}  // namespace mqa::kernels
