// Gradients by two kernels, and calls that are enough to notice the faults of planted_faults.py.
#include "kernels/cuda/backward.h"

#include <gtest/gtest.h>

#include "emulation.h"
#include "kernels/attention_gradient_oracle.h"
#include "kernels/cuda/launch_backward.cuh"

namespace mqa::kernels {
namespace cuda {

template <>
Status launch_backward<f16>(const BackwardArgs&, Stream) {
  throw std::logic_error("no such kernel in this test");
}
template <>
Status launch_backward<float>(const BackwardArgs&, Stream) {
  throw std::logic_error("no such kernel in this test");
}
template Status launch_backward<bf16>(const BackwardArgs&, Stream);

}  // namespace cuda

// Attention itself, in the few forms that are called here.
void run(const AttentionParams& p, const Threads&) {
  const auto number = [](const void* data, int64_t i) {
    return bfloat16_to_float(static_cast<const uint16_t*>(data)[i]);
  };
  for (int64_t row = 0; row < p.B * p.H_q * p.T; ++row) {
    const int64_t b = row / p.T / p.H_q, h = row / p.T % p.H_q / (p.H_q / p.H_kv);
    const KeyRange seen = visible_keys(p, b, row % p.T);
    std::vector<double> out(p.D_v);
    double sum = 0;
    for (int64_t j = seen.begin; j < seen.end; ++j) {
      const int64_t key = b * p.key.row_stride + h * p.key.head_stride + j * p.key.slot_stride;
      const int64_t value =
          b * p.value.row_stride + h * p.value.head_stride + j * p.value.slot_stride;
      double score = 0;
      for (int64_t d = 0; d < p.D; ++d) {
        score += p.scale * number(p.query, row * p.D + d) * number(p.key.data, key + d);
      }
      if (p.softcap > 0) score = p.softcap * std::tanh(score / p.softcap);
      sum += std::exp(score);
      for (int64_t d = 0; d < p.D_v; ++d) {
        out[d] += std::exp(score) * number(p.value.data, value + d);
      }
    }
    static_cast<float*>(p.lse)[row] = static_cast<float>(std::log(sum));
    for (int64_t d = 0; d < p.D_v; ++d) {
      static_cast<uint16_t*>(p.out)[row * p.D_v + d] =
          float_to_bfloat16(static_cast<float>(sum > 0 ? out[d] / sum : 0));
    }
  }
}

void run_backward(BackwardParams& params, const Threads&) {
  std::vector<char> workspace(cuda::backward_workspace(params));
  params.workspace = workspace.data();
  ASSERT_EQ(cuda::attention_backward(params, {}), cuda::kSuccess);
}

namespace {

void check_all() {
  const Format format{DType::kBFloat16, DType::kBFloat16};
  const Case cases[] = {
      {format, {.B = 2, .G = 8, .T = 20, .S = 150}, {.is_causal = true}},
      {format,
       {.H_kv = 33, .T = 130, .S = 130},
       {.is_causal = true}},  // several tiles in a segment
      {format, {.B = 2, .H_kv = 2, .G = 5, .T = 30, .S = 130}, {.window_left = 40, .softcap = 2}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(testing::Message() << c);
    const Problem problem(c, /*seed=*/9);
    const OutGrads grads = random_grads(problem, /*seed=*/1);
    GradientFormula(problem, grads, {.relative = unit_roundoff(DType::kBFloat16)})
        .expect_close(differentiate(problem, grads));
    if (testing::Test::HasFailure()) return;
  }
}

TEST(Gradients, EqualTheFormula) { check_all(); }

TEST(Gradients, HaveNoRacesInAnySchedule) {
  for (unsigned seed : {1, 2}) {
    emulation::set_options({.detect_races = true, .schedule_seed = seed});
    check_all();
  }
  emulation::set_options({});
}

TEST(Gradients, HaveNoBankConflicts) {
  emulation::take_stats();
  check_all();
  EXPECT_EQ(emulation::take_stats().bank_conflicts, 0u);
}

}  // namespace
}  // namespace mqa::kernels
