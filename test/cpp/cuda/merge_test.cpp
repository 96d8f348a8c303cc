// The merge kernel against its formula in float64.
#include "kernels/cuda/merge.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "../kernels/attention_oracle.h"
#include "../kernels/attention_problem.h"
#include "../kernels/dtypes.h"

namespace mqa::kernels {
namespace {

class CudaMerge : public testing::TestWithParam<DType> {};

TEST_P(CudaMerge, EqualsTheFormula) {
  std::mt19937 random(3);
  std::normal_distribution<double> normal;
  const DType dtype = GetParam();
  for (int64_t parts : {1, 2, 5, cuda::kMaxMergeParts}) {
    for (int64_t width : {1, 33, 64, 128, 500}) {
      constexpr int64_t kRows = 9;
      std::vector<Numbers> outs, lses;
      std::vector<const void*> out_data, lse_data;
      for (int64_t i = 0; i < parts; ++i) {
        Numbers& out = outs.emplace_back(dtype, kRows * width);
        Numbers& lse = lses.emplace_back(DType::kFloat32, kRows);
        for (int64_t k = 0; k < out.size(); ++k) out.set(k, normal(random));
        for (int64_t row = 0; row < kRows; ++row) {
          const bool empty = row == 0 || random() % 4 == 0;
          lse.set(row, empty ? -INFINITY : 3 * normal(random));
          if (empty) out.fill(row * width, width, NAN);
        }
      }
      for (int64_t i = 0; i < parts; ++i) {
        out_data.push_back(outs[i].data());
        lse_data.push_back(lses[i].data());
      }
      Numbers out(dtype, kRows * width), lse(DType::kFloat32, kRows);
      ASSERT_EQ(cuda::merge({parts, kRows, width, dtype, out_data.data(), lse_data.data(),
                             out.data(), lse.data()},
                            {}),
                cuda::kSuccess);
      for (int64_t row = 0; row < kRows; ++row) {
        double sum = 0;
        for (const Numbers& part : lses) sum += std::exp(part[row]);
        if (sum == 0) {
          EXPECT_EQ(lse[row], -INFINITY);
        } else {
          EXPECT_NEAR(lse[row], std::log(sum), 1e-6 * (1 + std::abs(std::log(sum))));
        }
        for (int64_t d = 0; d < width; ++d) {
          double expected = 0, magnitude = 0;
          for (int64_t i = 0; i < parts; ++i) {
            if (lses[i][row] == -INFINITY) continue;
            const double x = std::exp(lses[i][row]) / sum * outs[i][row * width + d];
            expected += x, magnitude += std::abs(x);
          }
          const double rounding = unit_roundoff(dtype) * std::abs(expected);
          ASSERT_NEAR(out[row * width + d], expected, rounding + 2e-6 * magnitude + 1e-7)
              << name_of(dtype) << ", " << parts << " parts, width " << width;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, CudaMerge,
                         testing::Values(DType::kFloat32, DType::kBFloat16, DType::kFloat16),
                         [](const auto& test) { return name_of(test.param); });

}  // namespace
}  // namespace mqa::kernels
