#include "kernels/cpu/append.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "dtypes.h"
#include "kernels/cpu/append_rows.h"
#include "kernels/cpu/isa.h"
#include "kernels/formats.h"
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

constexpr DType kFloats[] = {DType::kFloat64, DType::kFloat32, DType::kBFloat16, DType::kFloat16};
constexpr DType kAll[] = {DType::kFloat64, DType::kFloat32, DType::kBFloat16,
                          DType::kFloat16, DType::kInt8,    DType::kFloat8E4M3};

// Of which ones end in ties, overflow or are subnormal depends on the format that they go to.
std::vector<double> some_values(size_t count) {
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  std::uniform_int_distribution<int> exponent(-30, 18);
  std::vector<double> values(count);
  for (size_t i = 0; i < count; ++i) {
    values[i] = std::ldexp(normal(random), i % 3 ? 0 : exponent(random));
    if (i % 5 == 0) values[i] = std::nearbyint(values[i] * 4) / 8;
  }
  return values;
}

// A special value in every third row.
constexpr uint32_t kSpecial[] = {0x7fc00000, 0xff800001, 0x7fffffff, 0x7f800000,
                                 0xff800000, 0x80000000, 0x00000001};

class StoreRows : public testing::TestWithParam<cpu::Isa> {
 protected:
  StoreRows() : before_(cpu::current_isa()) { cpu::cap_isa(GetParam()); }
  ~StoreRows() override { cpu::cap_isa(before_); }
  void SetUp() override {
    if (cpu::current_isa() != GetParam()) GTEST_SKIP() << "this machine lacks the instructions";
  }

 private:
  cpu::Isa before_;
};

struct RowsCase {
  static constexpr int64_t kRows = 22, kGap = 3;
  DType source_dtype, cache_dtype;
  int64_t width;
  bool scale_given;
  std::vector<char> source, cache, expected;
  std::vector<float> scales, expected_scales;

  int64_t stride() const { return width + kGap; }

  RowsCase(DType from, DType to, int64_t width, bool scale_given)
      : source_dtype(from),
        cache_dtype(to),
        width(width),
        scale_given(scale_given),
        source(kRows * stride() * size_of(from)),
        cache(kRows * stride() * size_of(to), 0x5a),
        expected(cache),
        scales(kRows, 0.37f),
        expected_scales(scales) {
    std::vector<double> values = some_values(kRows * stride());
    std::fill_n(values.begin() + stride(), width, 0.);
    for (int64_t r = 2; r < kRows; r += 3) {
      const float special = std::bit_cast<float>(kSpecial[r / 3]);
      values[r * stride() + r % width] = special;
    }
    with_format(from, [&](auto format) {
      auto* data = reinterpret_cast<typename decltype(format)::Storage*>(source.data());
      for (size_t i = 0; i < values.size(); ++i) data[i] = format.narrow(values[i]);
    });
    with_format(from, [&](auto format) {
      with_format(to, [&](auto cache_format) { expect(format, cache_format); });
    });
  }

  // One element at a time.
  template <class From, class To>
  void expect(From, To) {
    for (int64_t r = 0; r < kRows; ++r) {
      const auto* from =
          reinterpret_cast<const typename From::Storage*>(source.data()) + r * stride();
      auto* to = reinterpret_cast<typename To::Storage*>(expected.data()) + r * stride();
      using Acc = std::conditional_t<std::is_same_v<From, Float64>, double, float>;
      Acc divisor = 1;
      if (is_quantised(cache_dtype)) {
        float& scale = expected_scales[r];
        if (!scale_given) {
          Acc largest = 0;
          for (int64_t i = 0; i < width; ++i) {
            const Acc x = std::abs(From::widen(from[i]));
            largest = std::isnan(x) || x > largest ? x : largest;
            if (std::isnan(largest)) break;
          }
          scale = static_cast<float>(largest / (cache_dtype == DType::kInt8 ? 127 : 448));
        }
        divisor = scale == 0 ? 1 : scale;
      }
      for (int64_t i = 0; i < width; ++i) {
        if constexpr (std::is_same_v<From, To>) {
          to[i] = from[i];
        } else {
          const Acc x = From::widen(from[i]);
          to[i] = To::narrow(is_quantised(cache_dtype) ? x / divisor : x);
        }
      }
    }
  }

  void store() {
    cpu::row_store(source_dtype, cache_dtype, /*is_packed=*/false)(run(cache, stride(), 0));
  }

  // As packed keys whose first row goes to `slot`; others keep what they hold.
  std::vector<char> stored_packed(int64_t slot) {
    std::vector<char> packed(group_stride() * groups(slot) * size_of(cache_dtype), 0x5a);
    cpu::row_store(source_dtype, cache_dtype,
                   /*is_packed=*/true)(run(packed, group_stride(), slot));
    return packed;
  }

  std::vector<char> expected_packed(int64_t slot) const {
    const int64_t size = size_of(cache_dtype);
    std::vector<char> packed(group_stride() * groups(slot) * size, 0x5a);
    for (int64_t r = 0; r < kRows; ++r) {
      const int64_t to = slot + r;
      for (int64_t d = 0; d < width; ++d) {
        const int64_t at =
            to / kPackedSlots * group_stride() + d * kPackedSlots + to % kPackedSlots;
        std::copy_n(expected.data() + (r * stride() + d) * size, size, packed.data() + at * size);
      }
    }
    return packed;
  }

  void expect_scales() const {
    for (int64_t r = 0; r < kRows; ++r) {
      if (std::isnan(expected_scales[r])) {
        ASSERT_TRUE(std::isnan(scales[r])) << r;
      } else {
        ASSERT_EQ(scales[r], expected_scales[r]) << r;
      }
    }
  }

 private:
  int64_t group_stride() const { return width * kPackedSlots + kGap; }
  static int64_t groups(int64_t slot) { return (slot + kRows + kPackedSlots - 1) / kPackedSlots; }

  cpu::RowRun run(std::vector<char>& to, int64_t to_stride, int64_t slot) {
    return {source.data(), stride(), to.data(),     to_stride, slot,
            kRows,         width,    scales.data(), 1,         scale_given};
  }
};

TEST_P(StoreRows, GivesTheBitsOfOneElementAtATime) {
  for (DType from : kFloats) {
    for (DType to : kAll) {
      for (bool scale_given : {false, true}) {
        if (scale_given && !is_quantised(to)) continue;
        for (int64_t width : {1, 7, 8, 15, 16, 17, 33, 64, 80, 128, 576, 1030}) {
          SCOPED_TRACE(testing::Message() << name_of(from) << " to " << name_of(to) << ", width "
                                          << width << ", scale given " << scale_given);
          RowsCase rows(from, to, width, scale_given);
          rows.store();
          ASSERT_EQ(rows.cache, rows.expected);
          rows.expect_scales();
          for (int64_t slot : {0, 11}) {
            ASSERT_EQ(rows.stored_packed(slot), rows.expected_packed(slot)) << "from slot " << slot;
            rows.expect_scales();
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Generic, StoreRows, testing::Values(cpu::Isa::kGeneric));
INSTANTIATE_TEST_SUITE_P(Avx2, StoreRows, testing::Values(cpu::Isa::kAvx2));
INSTANTIATE_TEST_SUITE_P(Avx512, StoreRows, testing::Values(cpu::Isa::kAvx512));

// Enough for many blocks, several threads and runs that end inside blocks and pages.
TEST(AppendDriver, PutsEveryTokenInItsSlotOrPage) {
  constexpr int64_t B = 2, H = 3, T = 300, D = 64, kPage = 48, kPages = 16;
  const int64_t positions[B] = {5, 77};
  std::vector<float> source(B * T * H * D);  // [B, T, H, D]
  std::iota(source.begin(), source.end(), 1.f);
  std::vector<int32_t> table(B * kPages / 2);
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i * 7 % kPages);
  std::vector<float> pool(kPages * H * kPage * D, 0.f), slots(B * H * kPages / 2 * kPage * D, 0.f);

  int64_t largest_range = 0;
  Threads threads{2, [&](int64_t count, const auto& body) {
                    largest_range = count;
                    body(count / 3, count);
                    body(0, count / 3);
                  }};
  const auto side = [&](std::vector<float>& cache, int64_t slots) {
    return AppendParams::Side{{cache.data(), DType::kFloat32, H * slots * D, slots * D, D, {}},
                              false,
                              D,
                              source.data(),
                              DType::kFloat32,
                              T * H * D,
                              D,
                              H * D};
  };
  cpu::append({B,
               H,
               T,
               positions,
               {table.data(), kPages / 2, 1, kPage},
               side(pool, kPage),
               side(pool, kPage)},
              threads);
  EXPECT_GT(largest_range, B);
  const int64_t S = kPages / 2 * kPage;
  cpu::append({B, H, T, positions, {}, side(slots, S), side(slots, S)}, threads);

  for (int64_t b = 0; b < B; ++b) {
    for (int64_t h = 0; h < H; ++h) {
      for (int64_t slot = 0; slot < S; ++slot) {
        const int64_t token = slot - positions[b];
        const bool written = 0 <= token && token < T;
        const int64_t page = table[b * kPages / 2 + slot / kPage];
        for (int64_t d = 0; d < D; ++d) {
          const float expected = written ? source[((b * T + token) * H + h) * D + d] : 0.f;
          ASSERT_EQ(pool[((page * H + h) * kPage + slot % kPage) * D + d], expected);
          ASSERT_EQ(slots[((b * H + h) * S + slot) * D + d], expected);
        }
      }
    }
  }
}

// Waking threads costs more than a decode step's append.
TEST(AppendDriver, LeavesThreadsAloneForAFewTokens) {
  constexpr int64_t D = 128, S = 4;
  std::vector<float> source(D, 1.f), cache(S * D, 0.f);
  const int64_t position = 2;
  const Threads threads{2, [](int64_t, const auto&) { FAIL(); }};
  const AppendParams::Side side{{cache.data(), DType::kFloat32, S * D, S * D, D, {}},
                                false,
                                D,
                                source.data(),
                                DType::kFloat32,
                                D,
                                D,
                                D};
  cpu::append({1, 1, 1, &position, {}, side, side}, threads);
  EXPECT_EQ(cache[2 * D], 1.f);
}

}  // namespace
}  // namespace mqa::kernels
