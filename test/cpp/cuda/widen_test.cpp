// Every code of 8 bits, next to every other in one test.
#include "kernels/cuda/widen.cuh"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/numeric.h"

namespace mqa::kernels::cuda {
namespace {

float to_float_of(bf16, uint16_t bits) { return bfloat16_to_float(bits); }
float to_float_of(f16, uint16_t bits) { return float16_to_float(bits); }

float value_of(int8_t, uint8_t code) { return static_cast<int8_t>(code); }
float value_of(e4m3, uint8_t code) { return float8_to_float(code); }

template <class Query, class Stored>
void check(float x, uint8_t code) {
  const float expected = value_of(Stored{}, code);
  if (std::isnan(expected)) {
    EXPECT_TRUE(std::isnan(x)) << int{code};
  } else {
    EXPECT_EQ(x * (kCodeFactor<Query, Stored>), expected) << int{code};
    EXPECT_EQ(std::signbit(x), std::signbit(expected)) << int{code};
  }
}

template <class Query, class Stored>
void check_all() {
  for (uint32_t i = 0; i < 256; ++i) {
    const uint8_t codes[4] = {static_cast<uint8_t>(i), static_cast<uint8_t>(i * 7 + 3),
                              static_cast<uint8_t>(255 - i), static_cast<uint8_t>(i ^ 0x80)};
    const uint32_t word = codes[0] | codes[1] << 8 | codes[2] << 16 | uint32_t{codes[3]} << 24;
    const auto pair = [&](uint32_t numbers, int first, int second) {
      check<Query, Stored>(to_float_of(Query{}, numbers & 0xffff), codes[first]);
      check<Query, Stored>(to_float_of(Query{}, numbers >> 16), codes[second]);
    };
    pair(widen<Query, Stored, 0, 1>(word), 0, 1);
    pair(widen<Query, Stored, 2, 3>(word), 2, 3);
    pair(widen<Query, Stored, 0, 2>(word), 0, 2);
    pair(widen<Query, Stored, 1, 3>(word), 1, 3);
    const float x = widen_to_float<Stored>(word), expected = value_of(Stored{}, codes[0]);
    EXPECT_TRUE(x == expected || (std::isnan(x) && std::isnan(expected))) << i;
  }
}

TEST(Widen, EveryCode) {
  check_all<bf16, int8_t>();
  check_all<f16, int8_t>();
  check_all<bf16, e4m3>();
  check_all<f16, e4m3>();
}

}  // namespace
}  // namespace mqa::kernels::cuda
