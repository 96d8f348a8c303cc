// The append kernel leaves the bits that the CPU's kernel leaves, and bad positions and pages leave
// the cache as it was.
#include "kernels/cuda/append.h"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "../kernels/dtypes.h"
#include "kernels/cpu/append.h"
#include "kernels/formats.h"

namespace mqa::kernels {
namespace {

constexpr DType kSources[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
constexpr DType kCaches[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kInt8,
                             DType::kFloat8E4M3};

struct Sizes {
  int64_t B, H_kv, T, width, capacity, page_size;  // page_size 0: not paged
  bool is_aligned, heads_first, scale_per_head;
};

// One side of a cache with gaps between its rows, and the rows for it.
struct SideMemory {
  std::vector<char> source, cache;
  std::vector<float> scales;
  AppendParams::Side side;

  SideMemory(const Sizes& s, int64_t pages, DType from, DType to, std::mt19937& random) {
    const int64_t slots = s.page_size ? s.page_size : s.capacity, rows = s.page_size ? pages : s.B;
    const int64_t stride = s.is_aligned ? (s.width + 31) / 16 * 16 : s.width + 3;
    const int64_t offset = s.is_aligned ? 0 : 1;
    source.resize((offset + s.B * s.H_kv * s.T * stride) * size_of(from));
    cache.assign((offset + rows * s.H_kv * slots * stride) * size_of(to), 0x5a);
    std::normal_distribution<float> normal;
    with_format(from, [&](auto format) {
      auto* data = reinterpret_cast<typename decltype(format)::Storage*>(source.data());
      const int64_t count = static_cast<int64_t>(source.size()) / size_of(from);
      for (int64_t i = 0; i < count; ++i) {
        data[i] = format.narrow(random() % 97 ? normal(random) : random() % 2 ? NAN : -INFINITY);
      }
      const int64_t zeros = std::min<int64_t>(count - offset, s.width);
      for (int64_t i = 0; i < zeros; ++i) data[offset + i] = format.narrow(0.f);
    });
    side.source = source.data() + offset * size_of(from);
    side.source_dtype = from;
    side.width = s.width;
    // [B, T, H_kv, width], as a projection's output is
    side.source_batch_stride = s.T * s.H_kv * stride;
    side.source_token_stride = s.H_kv * stride;
    side.source_head_stride = stride;
    side.cache.data = cache.data() + offset * size_of(to);
    side.cache.dtype = to;
    side.cache.row_stride = s.H_kv * slots * stride;
    side.cache.head_stride = s.heads_first ? slots * stride : stride;
    side.cache.slot_stride = s.heads_first ? stride : s.H_kv * stride;
    side.scale_per_head = s.scale_per_head && is_quantised(to);
    if (is_quantised(to)) {
      scales.assign(side.scale_per_head ? s.H_kv : rows * s.H_kv * slots, 0.37f);
      side.cache.scales = side.scale_per_head ? Scales{scales.data(), 0, 1, 0}
                                              : Scales{scales.data(), s.H_kv * slots, slots, 1};
    }
  }
};

// NaNs have the same bits, too, unless they come from a division.
void expect_same_floats(const std::vector<float>& a, const std::vector<float>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_TRUE(a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i]))) << i;
  }
}

class CudaAppend : public testing::TestWithParam<std::tuple<DType, DType>> {
 protected:
  void check(const Sizes& s, DType value_cache, unsigned seed) {
    const auto [from, to] = GetParam();
    SCOPED_TRACE(testing::Message()
                 << "B" << s.B << " H_kv" << s.H_kv << " T" << s.T << " width " << s.width
                 << " pages of " << s.page_size << (s.is_aligned ? " aligned" : "")
                 << (s.heads_first ? " heads first" : "") << (s.scale_per_head ? " per head" : "")
                 << ", values in " << name_of(value_cache) << ", seed " << seed);
    std::mt19937 random(seed);
    const int64_t row_pages = s.page_size ? (s.capacity + s.page_size - 1) / s.page_size : 0;
    const int64_t pages = s.B * row_pages + 1;
    std::vector<int32_t> table(s.B * row_pages);
    std::iota(table.begin(), table.end(), 1);
    std::shuffle(table.begin(), table.end(), random);
    std::vector<int64_t> positions(s.B);
    for (int64_t& position : positions) position = random() % (s.capacity - s.T + 1);

    SideMemory key(s, pages, from, to, random), value(s, pages, from, value_cache, random);
    AppendParams p{};
    p.B = s.B, p.H_kv = s.H_kv, p.T = s.T;
    p.positions = positions.data();
    p.capacity = s.capacity;
    if (s.page_size) p.block_table = {table.data(), row_pages, 1, s.page_size, pages};
    p.key = key.side, p.value = value.side;
    const SideMemory key_before = key, value_before = value;
    cpu::append(p, {});
    const SideMemory key_expected = key, value_expected = value;
    key.cache = key_before.cache, value.cache = value_before.cache;
    key.scales = key_before.scales, value.scales = value_before.scales;
    ASSERT_EQ(cuda::append(p, {}), cuda::kSuccess);
    ASSERT_EQ(key.cache, key_expected.cache);
    ASSERT_EQ(value.cache, value_expected.cache);
    expect_same_floats(key.scales, key_expected.scales);
    expect_same_floats(value.scales, value_expected.scales);
    if (p.B * p.H_kv * p.T > 0) {
      ASSERT_NE(key.cache, key_before.cache);
    }
  }
};

TEST_P(CudaAppend, LeavesTheBitsThatTheCpuLeaves) {
  std::mt19937 random(5);
  const auto one_of = [&](std::initializer_list<int64_t> values) {
    return values.begin()[random() % values.size()];
  };
  for (int i = 0; i < 40; ++i) {
    Sizes s{};
    s.B = one_of({0, 1, 2, 3});
    s.H_kv = one_of({1, 1, 2, 5});
    s.T = one_of({0, 1, 1, 1, 3, 20});
    s.width = one_of({1, 7, 16, 64, 71, 80, 128, 576});
    s.page_size = one_of({0, 0, 1, 16, 24});
    s.capacity = s.page_size ? s.page_size * 48 / std::min<int64_t>(s.page_size, 24) : 37;
    s.is_aligned = random() % 2, s.heads_first = random() % 2, s.scale_per_head = random() % 2;
    const DType value_cache = random() % 2 ? std::get<1>(GetParam()) : kCaches[random() % 5];
    check(s, value_cache, random());
    if (HasFatalFailure()) return;
  }
}

std::string name_of_pair(const testing::TestParamInfo<std::tuple<DType, DType>>& test) {
  return std::string(name_of(std::get<0>(test.param))) + "_" + name_of(std::get<1>(test.param));
}
INSTANTIATE_TEST_SUITE_P(Kernels, CudaAppend,
                         testing::Combine(testing::ValuesIn(kSources), testing::ValuesIn(kCaches)),
                         name_of_pair);

TEST(CudaAppendTarget, BadPositionsAndPagesWriteNothing) {
  constexpr int64_t kWidth = 64, kCapacity = 8, kTokens = 2;
  std::vector<float> source(kTokens * kWidth, 1.f), cache(kCapacity * kWidth, -7.f);
  const std::vector<float> before = cache;
  AppendParams p{};
  p.B = 1, p.H_kv = 1, p.T = kTokens;
  p.capacity = kCapacity;
  p.key = p.value = {{cache.data(), DType::kFloat32, 4 * kWidth, 4 * kWidth, kWidth, {}},
                     false,
                     kWidth,
                     source.data(),
                     DType::kFloat32,
                     kTokens * kWidth,
                     kTokens * kWidth,
                     kWidth};
  constexpr int64_t kLowest = std::numeric_limits<int64_t>::min();
  constexpr int64_t kHighest = std::numeric_limits<int64_t>::max();
  for (int64_t position : {int64_t{-1}, int64_t{7}, int64_t{8}, kLowest, kHighest}) {
    p.positions = &position;
    ASSERT_EQ(cuda::append(p, {}), cuda::kSuccess);
    EXPECT_EQ(cache, before) << position;
  }
  const int64_t position = 3;  // slots 3 and 4 are in pages 0 and 1
  p.positions = &position;
  for (int32_t page : {-1, 2, std::numeric_limits<int32_t>::max()}) {
    const int32_t table[] = {page, page};
    p.block_table = {table, 2, 1, 4, 2};
    ASSERT_EQ(cuda::append(p, {}), cuda::kSuccess);
    EXPECT_EQ(cache, before) << page;
  }
  const int32_t table[] = {1, 0};
  p.block_table = {table, 2, 1, 4, 2};
  ASSERT_EQ(cuda::append(p, {}), cuda::kSuccess);
  EXPECT_EQ(cache[7 * kWidth], 1.f);
  EXPECT_EQ(cache[0], 1.f);
  EXPECT_EQ(cache[kWidth], -7.f);
}

}  // namespace
}  // namespace mqa::kernels
