// The CPU's kernels to test.
#include "attention_call.h"
#include "attention_cases.h"
#include "attention_oracle.h"
#include "dtypes.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/backward.h"

namespace mqa::kernels {

void run(const AttentionParams& params, const Threads& threads) { cpu::attention(params, threads); }

void run_backward(BackwardParams& params, const Threads& threads) {
  std::vector<char> workspace(cpu::backward_workspace(params));
  params.workspace = workspace.data();
  cpu::attention_backward(params, threads);
}

bool has_backward(const Case&) { return true; }

WeightRounding weight_rounding(cpu::Isa isa, Format format) {
  if (isa < cpu::Isa::kAvx512Bf16 || format.query != DType::kBFloat16) return {};
  return {.relative = unit_roundoff(DType::kBFloat16)};
}

int drawn_calls() { return 20; }

void AttentionTest::SetUp() {
  in_use_ = std::make_unique<UseIsa>(isa());
  if (cpu::current_isa() != isa()) {
    GTEST_SKIP() << "this machine has no " << cpu::isa_name(isa()) << ", its best is "
                 << cpu::isa_name(cpu::current_isa());
  }
}

std::string name_of_test(const testing::TestParamInfo<AttentionTest::ParamType>& test) {
  const auto [isa, format] = test.param;
  std::string name = std::string(cpu::isa_name(isa)) + "_" + name_of(format.query);
  if (format.cache != format.query) name += std::string("_") + name_of(format.cache);
  return name;
}

std::vector<AttentionTest::ParamType> kernels_with_their_own_code() {
  std::vector<AttentionTest::ParamType> kernels;
  for (cpu::Isa isa : kIsas) {
    for (Format format : kFormats) {
      if (isa <= cpu::Isa::kAvx512 || weight_rounding(isa, format).relative > 0)
        kernels.emplace_back(isa, format);
    }
  }
  return kernels;
}

}  // namespace mqa::kernels
