// The attention driver against the formula, on memory laid out so that a sanitizer or a guard zone
// shows every access outside it.
#include "kernels/cpu/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <tuple>
#include <vector>

#include "kernels/cpu/isa.h"

namespace mqa::kernels {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Shape {
  int64_t B, H_q, H_kv, T, S, D, D_v, page_size;  // page_size 0: contiguous
  bool is_causal;
  double softcap = 0;
};

void PrintTo(const Shape& s, std::ostream* out) {
  *out << "B" << s.B << " H_q" << s.H_q << " H_kv" << s.H_kv << " T" << s.T << " S" << s.S << " D"
       << s.D << " D_v" << s.D_v << " page" << s.page_size << (s.is_causal ? " causal" : "");
}

// One call on random data; slots that no sequence holds are NaN.
struct Call {
  Shape shape;
  std::vector<float> query, key, value, out, lse;
  std::vector<int64_t> seq_lens;
  std::vector<int32_t> pages;
  AttentionParams params{};

  explicit Call(const Shape& s, unsigned seed) : shape(s) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const auto fill = [&](int64_t count) {
      std::vector<float> x(count);
      for (float& v : x) v = normal(random);
      return x;
    };
    const int64_t page_size = s.page_size ? s.page_size : s.S;
    const int64_t row_pages = s.page_size ? (s.S + page_size - 1) / page_size : 1;
    query = fill(s.B * s.H_q * s.T * s.D);
    key = fill(s.B * row_pages * s.H_kv * page_size * s.D);
    value = fill(s.B * row_pages * s.H_kv * page_size * s.D_v);
    out.assign(s.B * s.H_q * s.T * s.D_v, kNaN);
    lse.assign(s.B * s.H_q * s.T, kNaN);
    for (int64_t b = 0; b < s.B; ++b) seq_lens.push_back(random() % (s.S + 1));
    for (int64_t i = 0; i < s.B * row_pages; ++i) pages.push_back(s.B * row_pages - 1 - i);

    params.B = s.B, params.H_q = s.H_q, params.H_kv = s.H_kv;
    params.T = s.T, params.S = row_pages * page_size, params.D = s.D, params.D_v = s.D_v;
    params.query = query.data();
    params.dtype = DType::kFloat32;
    params.query_batch_stride = s.H_q * s.T * s.D;
    params.query_head_stride = s.T * s.D;
    params.query_token_stride = s.D;
    params.key = {key.data(), DType::kFloat32, s.H_kv * page_size * s.D, page_size * s.D, s.D, {}};
    params.value = {value.data(),      DType::kFloat32, s.H_kv * page_size * s.D_v,
                    page_size * s.D_v, s.D_v,           {}};
    if (s.page_size) params.block_table = {pages.data(), row_pages, 1, page_size};
    params.seq_lens = seq_lens.data();
    params.is_causal = s.is_causal;
    params.window_left = params.window_right = -1;
    params.scale = 1 / std::sqrt(static_cast<double>(s.D));
    params.softcap = s.softcap;
    params.lse = lse.data();
    params.out = out.data();
    for (int64_t b = 0; b < s.B; ++b) {
      for (int64_t j = seq_lens[b]; j < params.S; ++j) {
        for (int64_t h = 0; h < s.H_kv; ++h) {
          std::fill_n(key.begin() + offset(params.key, b, h, j), s.D, kNaN);
          std::fill_n(value.begin() + offset(params.value, b, h, j), s.D_v, kNaN);
        }
      }
    }
  }
  Call(const Call&) = delete;

  int64_t offset(const Cache& cache, int64_t b, int64_t h, int64_t j) const {
    const BlockTable& table = params.block_table;
    const int64_t row = table.pages ? table.pages[b * table.row_stride + j / table.page_size] : b;
    return row * cache.row_stride + h * cache.head_stride +
           (table.pages ? j % table.page_size : j) * cache.slot_stride;
  }

  // Visits every row with its result by the formula, in float64.
  template <class Visit>
  void for_each_expected(const Visit& visit) const {
    const Shape& s = shape;
    for (int64_t b = 0; b < s.B; ++b) {
      for (int64_t h = 0; h < s.H_q; ++h) {
        for (int64_t t = 0; t < s.T; ++t) {
          const int64_t row = (b * s.H_q + h) * s.T + t, kv_head = h / (s.H_q / s.H_kv);
          std::vector<double> expected(s.D_v, 0.);
          double sum = 0;
          for (int64_t j = 0; j < seq_lens[b]; ++j) {
            if (s.is_causal && j > seq_lens[b] - s.T + t) break;
            double score = 0;
            for (int64_t d = 0; d < s.D; ++d) {
              score += double{query[row * s.D + d]} * key[offset(params.key, b, kv_head, j) + d];
            }
            score *= params.scale;
            if (s.softcap > 0) score = s.softcap * std::tanh(score / s.softcap);
            const double weight = std::exp(score);
            sum += weight;
            for (int64_t d = 0; d < s.D_v; ++d) {
              expected[d] += weight * value[offset(params.value, b, kv_head, j) + d];
            }
          }
          for (double& x : expected) x /= sum == 0 ? 1 : sum;
          visit(row, expected, std::log(sum));
        }
      }
    }
  }
};

class Attention : public testing::TestWithParam<std::tuple<cpu::Isa, Shape>> {
 protected:
  void SetUp() override {
    const auto [isa, shape_of_case] = GetParam();
    shape = shape_of_case;
    cpu::cap_isa(isa);
    if (cpu::current_isa() != isa) GTEST_SKIP() << "this machine does not have these instructions";
  }
  void TearDown() override { cpu::cap_isa(cpu::Isa::kAvx512); }

  Shape shape;
};

TEST_P(Attention, EqualsTheFormula) {
  Call call(shape, /*seed=*/7);
  cpu::attention(call.params, {});
  call.for_each_expected([&](int64_t row, const std::vector<double>& expected, double lse) {
    if (std::isinf(lse)) {
      EXPECT_EQ(call.lse[row], -INFINITY);
    } else {
      EXPECT_NEAR(call.lse[row], lse, 1e-5);
    }
    for (size_t d = 0; d < expected.size(); ++d) {
      ASSERT_NEAR(call.out[row * expected.size() + d], expected[d], 2e-6) << "row " << row;
    }
  });
}

// Runs ranges of odd sizes, last one first: whatever a thread pool might do.
Threads scrambled(int64_t count) {
  return {count, [](int64_t n, const auto& body) {
            for (int64_t end = n; end > 0; end -= 3) body(std::max<int64_t>(end - 3, 0), end);
          }};
}

TEST_P(Attention, SameBitsForEveryThreadCount) {
  Call serial(shape, /*seed=*/7);
  cpu::attention(serial.params, {});
  for (int64_t threads : {2, 16}) {
    Call parallel(shape, /*seed=*/7);
    cpu::attention(parallel.params, scrambled(threads));
    EXPECT_EQ(serial.out, parallel.out) << threads;
    EXPECT_EQ(serial.lse, parallel.lse) << threads;
  }
}

const Shape kShapes[] = {
    {1, 1, 1, 1, 1, 1, 1, 0, false},         // the smallest
    {2, 8, 8, 1, 100, 64, 64, 0, false},     // MHA decode
    {2, 9, 3, 1, 700, 64, 64, 0, true},      // GQA decode
    {1, 71, 1, 1, 2100, 64, 64, 0, false},   // MQA decode, split over keys
    {1, 16, 1, 2, 1500, 576, 512, 0, true},  // latent attention
    {2, 6, 2, 70, 70, 80, 96, 0, true},      // prefill, odd widths
    {3, 4, 2, 5, 3, 7, 13, 0, true},         // more queries than keys
    {2, 4, 1, 3, 130, 33, 17, 16, true},     // pages, rows that need padding
    {2, 26, 2, 4, 333, 128, 128, 1, false},  // pages of one slot
    {2, 3, 1, 1, 1200, 64, 64, 128, true},   // large pages
    {2, 6, 2, 3, 90, 32, 32, 0, true, 0.7},  // scores capped, small and large ones
};

INSTANTIATE_TEST_SUITE_P(Generic, Attention,
                         testing::Combine(testing::Values(cpu::Isa::kGeneric),
                                          testing::ValuesIn(kShapes)));
INSTANTIATE_TEST_SUITE_P(Avx2, Attention,
                         testing::Combine(testing::Values(cpu::Isa::kAvx2),
                                          testing::ValuesIn(kShapes)));
INSTANTIATE_TEST_SUITE_P(Avx512, Attention,
                         testing::Combine(testing::Values(cpu::Isa::kAvx512),
                                          testing::ValuesIn(kShapes)));

// A value that a row does not see may be anything, also where another row of the tile sees it.
TEST(AttentionMasking, HiddenInfinitiesDoNotLeak) {
  Call call({1, 2, 1, 8, 8, 16, 16, 0, true}, /*seed=*/3);
  call.seq_lens[0] = 8;
  std::fill(call.key.begin(), call.key.end(), 0.5f);
  std::fill(call.value.begin(), call.value.end(), 0.5f);
  std::fill_n(call.value.begin() + 7 * 16, 16, INFINITY);  // only the last token sees slot 7
  cpu::attention(call.params, {});
  for (int64_t h = 0; h < 2; ++h) {
    for (int64_t t = 0; t < 8; ++t) {
      const float first = call.out[(h * 8 + t) * 16];
      EXPECT_EQ(std::isfinite(first), t < 7) << "token " << t;
    }
  }
}

}  // namespace
}  // namespace mqa::kernels
