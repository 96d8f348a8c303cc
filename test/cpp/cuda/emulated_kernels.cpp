// The CUDA kernels, run in an emulation, for the tests of test/cpp/kernels.
#include <gtest/gtest.h>

#include "../kernels/attention_call.h"
#include "../kernels/attention_cases.h"
#include "../kernels/attention_oracle.h"
#include "../kernels/dtypes.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/backward.h"

namespace mqa::kernels {

// As many multiprocessors as there would be threads: one makes blocks take whole groups of chunks.
void run(const AttentionParams& params, const Threads& threads) {
  const cuda::Device device{.multiprocessors = static_cast<int>(threads.count),
                            .smem_per_block = 227 * 1024,
                            .compute_capability = 90};
  std::vector<char> workspace(cuda::attention_workspace(params, device));
  ASSERT_EQ(cuda::attention(params, device, workspace.data(), {}), cuda::kSuccess);
}

// The kernels write a mask's gradient without broadcasting: what the mask broadcasts is added up.
void run_backward(BackwardParams& params, const Threads&) {
  const BackwardParams& p = params;
  BackwardParams dense = params;
  std::vector<float> mask_grad(p.grad_mask.data ? p.B * p.H_q * p.T * p.S : 0);
  if (p.grad_mask.data) {
    dense.grad_mask = {mask_grad.data(), DType::kFloat32, p.H_q * p.T * p.S, p.T * p.S, p.S, 1};
  }
  std::vector<char> workspace(cuda::backward_workspace(dense));
  dense.workspace = workspace.data();
  ASSERT_EQ(cuda::attention_backward(dense, {}), cuda::kSuccess);
  const Mask& to = p.grad_mask;
  for (size_t i = 0; i < mask_grad.size(); ++i) {
    const int64_t j = i % p.S, t = i / p.S % p.T, h = i / p.S / p.T % p.H_q,
                  b = i / p.S / p.T / p.H_q;
    static_cast<float*>(const_cast<void*>(to.data))[b * to.batch_stride + h * to.head_stride +
                                                    t * to.query_stride + j * to.key_stride] +=
        mask_grad[i];
  }
}

// 8-bit caches are dequantised before.
bool has_backward(const Case& c) {
  return size_of(c.format.cache) > 1 &&
         std::max(c.shape.D, c.shape.D_v) <= cuda::kMaxBackwardHeadDim;
}

WeightRounding weight_rounding(cpu::Isa, Format format) {
  if (format.query == DType::kFloat32) return {};
  return {.relative = unit_roundoff(format.query)};
}

int drawn_calls() { return 7; }

void AttentionTest::SetUp() {}

std::string name_of_test(const testing::TestParamInfo<AttentionTest::ParamType>& test) {
  const Format format = std::get<1>(test.param);
  std::string name = name_of(format.query);
  if (format.cache != format.query) name += std::string("_") + name_of(format.cache);
  return name;
}

std::vector<AttentionTest::ParamType> kernels_with_their_own_code() {
  std::vector<AttentionTest::ParamType> kernels;
  for (Format format : kFormats) {
    if (format.query != DType::kFloat64) kernels.emplace_back(cpu::Isa::kGeneric, format);
  }
  return kernels;
}

}  // namespace mqa::kernels
