// Results that the device rounds once, to formats with fewer bits than float.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace mqa::emulation {

// x * y + z of bfloat16 numbers, whose product is exact in double. An inexact sum becomes the
// neighbour with an odd last bit: rounding that to a format with at most 22 bits is rounding the
// exact sum.
inline float fma_to_odd(float x, float y, float z) {
  const float sum = std::fma(x, y, z);
  const double product = double{x} * y, wide = product + z;
  const double own_z = wide - product;
  const double lost = (product - (wide - own_z)) + (z - own_z);  // by `wide`, exactly
  const double rest = (wide - sum) + lost;                       // by `sum`; NaN: nothing to mend
  const bool is_odd = std::bit_cast<uint32_t>(sum) & 1;
  if (is_odd || !(rest < 0 || rest > 0)) return sum;
  return std::nextafter(sum, rest > 0 ? INFINITY : -INFINITY);
}

}  // namespace mqa::emulation
