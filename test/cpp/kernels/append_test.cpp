#include "kernels/cpu/append.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/numeric.h"

namespace mqa::kernels {
namespace {

constexpr int64_t kBatch = 2, kHeads = 2, kTokens = 3, kSlots = 8, kWidth = 5;

AppendParams::Side side(void* cache, DType dtype, Scales scales, bool scale_per_head,
                        const std::vector<float>& source) {
  return {{cache, dtype, kHeads * kSlots * kWidth, kSlots * kWidth, kWidth, scales},
          scale_per_head,
          kWidth,
          source.data(),
          DType::kFloat32,
          kHeads * kTokens * kWidth,
          kTokens * kWidth,
          kWidth};
}

struct Append : testing::Test {
  std::vector<float> source;
  std::vector<int64_t> positions{1, 5};

  Append() {
    for (int i = 0; i < kBatch * kHeads * kTokens * kWidth; ++i) source.push_back(std::sin(i) * 3);
  }
  void run(const AppendParams::Side& key, const AppendParams::Side& value) {
    cpu::append({kBatch, kHeads, kTokens, positions.data(), {}, key, value}, {});
  }
  // The source value that belongs to a slot of the cache, or null.
  const float* expected(int64_t b, int64_t h, int64_t slot) const {
    const int64_t token = slot - positions[b];
    if (token < 0 || token >= kTokens) return nullptr;
    return source.data() + ((b * kHeads + h) * kTokens + token) * kWidth;
  }
  template <class Visit>
  void for_each_slot(const Visit& visit) const {
    for (int64_t b = 0; b < kBatch; ++b) {
      for (int64_t h = 0; h < kHeads; ++h) {
        for (int64_t slot = 0; slot < kSlots; ++slot) visit(b, h, slot);
      }
    }
  }
};

TEST_F(Append, CopiesAndConvertsAndTouchesNothingElse) {
  std::vector<float> keys(kBatch * kHeads * kSlots * kWidth, -7.f);
  std::vector<uint16_t> values(keys.size(), 0xabcd);
  run(side(keys.data(), DType::kFloat32, {}, false, source),
      side(values.data(), DType::kBFloat16, {}, false, source));
  for_each_slot([&](int64_t b, int64_t h, int64_t slot) {
    const float* row = expected(b, h, slot);
    for (int64_t d = 0; d < kWidth; ++d) {
      const int64_t at = ((b * kHeads + h) * kSlots + slot) * kWidth + d;
      EXPECT_EQ(keys[at], row ? row[d] : -7.f);
      EXPECT_EQ(values[at], row ? float_to_bfloat16(row[d]) : 0xabcd);
    }
  });
}

TEST_F(Append, QuantisesByTokenOrByTheGivenHeadScale) {
  std::vector<int8_t> keys(kBatch * kHeads * kSlots * kWidth, 99);
  std::vector<uint8_t> values(keys.size(), 99);
  std::vector<float> token_scales(kBatch * kHeads * kSlots, -1.f), head_scales{0.5f, 0.25f};
  run(side(keys.data(), DType::kInt8, {token_scales.data(), kHeads * kSlots, kSlots, 1}, false,
           source),
      side(values.data(), DType::kFloat8E4M3, {head_scales.data(), 0, 1, 0}, true, source));
  for_each_slot([&](int64_t b, int64_t h, int64_t slot) {
    const int64_t at = (b * kHeads + h) * kSlots + slot;
    const float* row = expected(b, h, slot);
    if (!row) {
      EXPECT_EQ(token_scales[at], -1.f);
      EXPECT_EQ(keys[at * kWidth], 99);
      return;
    }
    float largest = 0;
    for (int64_t d = 0; d < kWidth; ++d) largest = std::max(largest, std::abs(row[d]));
    EXPECT_EQ(token_scales[at], largest / 127);
    for (int64_t d = 0; d < kWidth; ++d) {
      EXPECT_EQ(keys[at * kWidth + d], std::nearbyint(row[d] / token_scales[at]));
      EXPECT_EQ(values[at * kWidth + d], float_to_float8(row[d] / head_scales[h]));
    }
  });
  EXPECT_EQ(head_scales, (std::vector<float>{0.5f, 0.25f}));
}

TEST_F(Append, ZerosGetScaleZeroAndNotANumberStaysOne) {
  std::fill(source.begin(), source.end(), 0.f);
  source[0] = NAN;
  std::vector<int8_t> keys(kBatch * kHeads * kSlots * kWidth, 99), values = keys;
  std::vector<float> scales(kBatch * kHeads * kSlots, -1.f);
  const Scales by_token{scales.data(), kHeads * kSlots, kSlots, 1};
  run(side(keys.data(), DType::kInt8, by_token, false, source),
      side(values.data(), DType::kInt8, by_token, false, source));
  EXPECT_TRUE(std::isnan(scales[1]));  // batch 0, head 0, slot 1
  EXPECT_EQ(scales[2], 0.f);
  EXPECT_EQ(keys[2 * kWidth], 0);
}

}  // namespace
}  // namespace mqa::kernels
