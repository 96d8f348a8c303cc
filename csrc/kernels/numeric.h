// Conversions between float and the 16- and 8-bit storage formats, as branch-free arithmetic on
// integers of 32 bits that compilers vectorise. Rounding is to nearest even.
#pragma once

#include <bit>
#include <cstdint>

#include "host_device.h"

namespace mqa::kernels {
namespace {  // internal linkage: every ISA that includes this compiles its own copy

MQA_HOST_DEVICE inline float bfloat16_to_float(uint16_t x) {
  return std::bit_cast<float>(uint32_t{x} << 16);
}

MQA_HOST_DEVICE inline uint16_t float_to_bfloat16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x40;
  return static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? quiet_nan : rounded);
}

// Moving the exponent and mantissa into place leaves a bias that a multiplication by a power of two
// corrects, subnormals included.
MQA_HOST_DEVICE inline float float16_to_float(uint16_t x) {
  const uint32_t magnitude = uint32_t{x} & 0x7fff;
  const uint32_t finite = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude << 13) * 0x1p112f);
  const uint32_t special = 0x7f800000 | (magnitude << 13);
  uint32_t bits = magnitude < 0x7c00 ? finite : special;
  bits |= magnitude > 0x7c00 ? 0x400000 : 0;  // a NaN becomes a quiet one
  return std::bit_cast<float>(bits | (uint32_t{x} & 0x8000) << 16);
}

// |x|, at most `largest`, rounded to a format with kMantissa bits whose smallest normal number has
// the bits `normal` as a float. Its code is also right where it is subnormal: the exponent that
// rounding sees is never below the smallest one.
template <int kMantissa>
MQA_HOST_DEVICE inline int32_t rounded_code(int32_t magnitude, int32_t normal, int32_t largest) {
  constexpr int kDropped = 23 - kMantissa;
  const int32_t finite = magnitude < largest ? magnitude : largest;
  const int32_t own_exponent = finite & 0x7f800000;
  const int32_t exponent = own_exponent > normal ? own_exponent : normal;
  // A sum with 2^kDropped times the power of two ends at the last bit that is to stay.
  const int32_t shift = exponent + (kDropped << 23);
  const int32_t sum =
      std::bit_cast<int32_t>(std::bit_cast<float>(finite) + std::bit_cast<float>(shift));
  return sum - shift + ((exponent - normal) >> kDropped);
}

MQA_HOST_DEVICE inline uint16_t float_to_float16(float x) {
  const int32_t bits = std::bit_cast<int32_t>(x);
  const int32_t magnitude = bits & 0x7fffffff;
  const int32_t number = rounded_code<10>(magnitude, 0x38800000, 0x47800000);  // 2^16 is infinity
  const int32_t quiet_nan = 0x7e00 | (magnitude >> 13 & 0x3ff);
  const int32_t code = magnitude > 0x7f800000 ? quiet_nan : number;
  return static_cast<uint16_t>(code | (bits >> 16 & 0x8000));
}

// float8_e4m3fn: bias 7, no infinity, NaN is 0x7f, largest value 448.
MQA_HOST_DEVICE inline float float8_to_float(uint8_t x) {
  const uint32_t magnitude = uint32_t{x} & 0x7f;
  const uint32_t finite = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude << 20) * 0x1p120f);
  const uint32_t bits = magnitude == 0x7f ? 0x7fc00000 : finite;
  return std::bit_cast<float>(bits | (uint32_t{x} & 0x80) << 24);
}

// Codes of 8 bits come in 32, so that a loop over them can be vectorised in lanes of one width.

// Values beyond +-448 become +-448.
MQA_HOST_DEVICE inline int32_t float8_code(float x) {
  const int32_t bits = std::bit_cast<int32_t>(x);
  const int32_t magnitude = bits & 0x7fffffff;
  const int32_t number = rounded_code<3>(magnitude, 0x3c800000, 0x43e00000);
  const int32_t code = magnitude > 0x7f800000 ? 0x7f : number;
  return code | (bits >> 24 & 0x80);
}

// Values beyond +-127 become +-127; NaN becomes 0.
MQA_HOST_DEVICE inline int32_t int8_code(float x) {
  const int32_t bits = std::bit_cast<int32_t>(x);
  const int32_t magnitude = bits & 0x7fffffff;
  const int32_t clamped = magnitude < 0x42fe0000 ? magnitude : 0x42fe0000;
  // A sum with 2^23 ends at the units.
  const int32_t rounded =
      std::bit_cast<int32_t>(std::bit_cast<float>(clamped) + 0x1p23f) - 0x4b000000;
  const int32_t integer = magnitude > 0x7f800000 ? 0 : rounded;
  return bits < 0 ? -integer : integer;
}

MQA_HOST_DEVICE inline uint8_t float_to_float8(float x) {
  return static_cast<uint8_t>(float8_code(x));
}

MQA_HOST_DEVICE inline int8_t float_to_int8(float x) { return static_cast<int8_t>(int8_code(x)); }

}  // namespace
}  // namespace mqa::kernels
