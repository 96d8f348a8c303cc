// The CUDA kernels, run in an emulation, for the tests of test/cpp/kernels.
#include <gtest/gtest.h>

#include "../kernels/attention_call.h"
#include "../kernels/attention_cases.h"
#include "../kernels/attention_oracle.h"
#include "../kernels/dtypes.h"
#include "kernels/cuda/attention.h"

namespace mqa::kernels {

// As many multiprocessors as there would be threads: one makes blocks take whole groups of chunks.
void run(const AttentionParams& params, const Threads& threads) {
  const cuda::Device device{.multiprocessors = static_cast<int>(threads.count),
                            .smem_per_block = 227 * 1024,
                            .compute_capability = 90};
  std::vector<char> workspace(cuda::attention_workspace(params, device));
  ASSERT_EQ(cuda::attention(params, device, workspace.data(), {}), cuda::kSuccess);
}

WeightRounding weight_rounding(cpu::Isa, Format format) {
  if (format.query == DType::kFloat32) return {};
  return {.relative = unit_roundoff(format.query)};
}

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
