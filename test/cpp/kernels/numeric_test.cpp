// The conversions between float and the storage formats, over every code.
#include "kernels/numeric.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <random>

namespace mqa::kernels {
namespace {

// What the format's definition says: sign, exponent with its bias, mantissa, subnormals.
double decode(uint32_t code, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = code >> mantissa_bits & ((1 << exponent_bits) - 1);
  const double fraction = std::ldexp(code & ((1 << mantissa_bits) - 1), -mantissa_bits);
  const double sign = code >> (exponent_bits + mantissa_bits) ? -1 : 1;
  return exponent == 0 ? sign * std::ldexp(fraction, 1 - bias)
                       : sign * std::ldexp(1 + fraction, exponent - bias);
}

TEST(Numeric, Float16WidensEveryCode) {
  for (uint32_t code = 0; code < 0x10000; ++code) {
    const float x = float16_to_float(code);
    if ((code & 0x7fff) > 0x7c00) {
      EXPECT_TRUE(std::isnan(x)) << code;
    } else if ((code & 0x7fff) == 0x7c00) {
      EXPECT_EQ(x, code == 0x7c00 ? INFINITY : -INFINITY);
    } else {
      ASSERT_EQ(x, decode(code, 5, 10)) << code;
      ASSERT_EQ(float_to_float16(x), code) << code;
    }
  }
}

TEST(Numeric, BFloat16WidensEveryCode) {
  for (uint32_t code = 0; code < 0x10000; ++code) {
    const float x = bfloat16_to_float(code);
    if ((code & 0x7fff) > 0x7f80) {
      EXPECT_TRUE(std::isnan(x)) << code;
      EXPECT_TRUE(std::isnan(bfloat16_to_float(float_to_bfloat16(x)))) << code;
    } else if ((code & 0x7fff) == 0x7f80) {
      EXPECT_EQ(x, code == 0x7f80 ? INFINITY : -INFINITY);
    } else {
      ASSERT_EQ(x, decode(code, 8, 7)) << code;
      ASSERT_EQ(float_to_bfloat16(x), code) << code;
    }
  }
}

TEST(Numeric, Float8WidensEveryCode) {
  for (uint32_t code = 0; code < 0x100; ++code) {
    const float x = float8_to_float(code);
    if ((code & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(x)) << code;
    } else {
      EXPECT_EQ(x, decode(code, 4, 3)) << code;
      EXPECT_EQ(float_to_float8(x), code) << code;
    }
  }
}

// Rounding is checked against a search for the nearest value, even code on a tie.
template <class Widen, class Narrow>
void expect_nearest_even(Widen widen, Narrow narrow, uint32_t codes, float largest) {
  std::map<float, uint32_t> values;  // finite, not negative
  for (uint32_t code = 0; code < codes; ++code) {
    if (std::isfinite(widen(code))) values[widen(code)] = code;
  }
  std::mt19937 random(1);
  std::uniform_real_distribution<float> exponent(std::log2(values.upper_bound(0)->first) - 2,
                                                 std::log2(largest));
  const auto check = [&](float x) {
    const auto above = values.lower_bound(x);
    uint32_t expected = above->second;
    if (above->first != x) {
      const auto below = std::prev(above);
      const double down = double{x} - below->first, up = double{above->first} - x;
      const bool even_below = below->second % 2 == 0;
      if (down < up || (down == up && even_below)) expected = below->second;
    }
    ASSERT_EQ(narrow(x), expected) << x;
    ASSERT_EQ(widen(narrow(-x)), -widen(expected)) << x;
  };
  for (int i = 0; i < 200000; ++i) check(std::min(std::exp2(exponent(random)), largest));
  for (auto it = values.begin(); std::next(it) != values.end(); ++it) {
    check(it->first + (std::next(it)->first - it->first) / 2);  // every tie
  }
}

TEST(Numeric, NarrowingRoundsToNearestEven) {
  expect_nearest_even(float16_to_float, float_to_float16, 0x8000, 65504.f);
  expect_nearest_even(float8_to_float, float_to_float8, 0x80, 448.f);
  expect_nearest_even(bfloat16_to_float, float_to_bfloat16, 0x8000, 1e38f);
}

TEST(Numeric, NarrowingBeyondTheRange) {
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(float_to_float16(65519.f), 0x7bff);
  EXPECT_EQ(float_to_float16(65520.f), 0x7c00);
  EXPECT_EQ(float_to_float16(-1e30f), 0xfc00);
  EXPECT_EQ(float_to_float16(INFINITY), 0x7c00);
  EXPECT_TRUE(std::isnan(float16_to_float(float_to_float16(kNaN))));
  EXPECT_EQ(float_to_float8(1e30f), 0x7e);
  EXPECT_EQ(float_to_float8(-INFINITY), 0xfe);
  EXPECT_TRUE(std::isnan(float8_to_float(float_to_float8(kNaN))));
  EXPECT_EQ(float_to_bfloat16(INFINITY), 0x7f80);
  EXPECT_EQ(float_to_int8(2.5f), 2);
  EXPECT_EQ(float_to_int8(-3.5f), -4);
  EXPECT_EQ(float_to_int8(500.f), 127);
  EXPECT_EQ(float_to_int8(-INFINITY), -127);
  EXPECT_EQ(float_to_int8(kNaN), 0);
}

}  // namespace
}  // namespace mqa::kernels
