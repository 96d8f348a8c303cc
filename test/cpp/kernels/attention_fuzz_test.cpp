#include <gtest/gtest.h>

#include "attention_call.h"
#include "attention_cases.h"
#include "attention_oracle.h"

namespace mqa::kernels {
namespace {

// The same calls on all instruction sets of the machine, so that they agree with each other. Other
// calls: --gtest_filter='*Fuzz*' --gtest_shuffle --gtest_repeat=100 (a seed is printed for each).
TEST(AttentionFuzz, EveryInstructionSetEqualsTheFormula) {
  CaseGenerator generator(testing::UnitTest::GetInstance()->random_seed());
  for (int i = 0; i < 600; ++i) {
    const Format format = kFormats[generator.below(std::size(kFormats))];
    const Case c = generator.draw(format, /*work=*/4'000'000);
    const Layout layout = generator.layout();
    const unsigned seed = generator.seed();
    const Problem problem(c, seed);
    const Formula formula(problem);
    for (cpu::Isa isa : kIsas) {
      const UseIsa use(isa);
      if (cpu::current_isa() != isa) continue;
      SCOPED_TRACE(testing::Message()
                   << cpu::isa_name(isa) << ": " << c << ", " << layout << ", seed " << seed);
      formula.expect_close(attend(problem, layout, scrambled(2)), weight_rounding(isa, format));
    }
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace mqa::kernels
