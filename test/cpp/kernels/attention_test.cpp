// The attention driver against the formula, on memory laid out so that a sanitizer or a guard zone
// shows every access outside it.
#include <gtest/gtest.h>

#include <cmath>

#include "attention_call.h"
#include "attention_cases.h"
#include "attention_oracle.h"

namespace mqa::kernels {
namespace {

class Attention : public AttentionTest {
 protected:
  void check(const Case& c, const Layout& layout, unsigned seed, bool is_large = false) const {
    SCOPED_TRACE(testing::Message() << c << ", " << layout << ", seed " << seed);
    const Problem problem(c, seed);
    const Formula formula(problem);
    const Result result = attend(problem, layout);
    formula.expect_close(result, weight_rounding(isa(), format()));
    if (is_large) formula.expect_rounded_to_nearest(result, weight_rounding(isa(), format()));
  }
};

// Sizes that users have.
TEST_P(Attention, EqualsTheFormulaForLargeSizes) {
  const Shape shapes[] = {
      {.B = 2, .H_kv = 8, .S = 100},               // MHA decode
      {.B = 2, .H_kv = 3, .G = 3, .S = 700},       // GQA decode
      {.G = 71, .S = 2100},                        // MQA decode
      {.G = 128, .S = 600, .D = 128, .D_v = 128},  // a full tile of rows
      {.G = 16, .T = 2, .S = 515, .D = 576, .D_v = 512, .value_is_key = true},  // latent attention
      {.H_kv = 2, .G = 3, .T = 200, .S = 200},                                  // prefill
      {.G = 8, .T = 40, .S = 330, .D = 128, .D_v = 128},  // a later chunk of a prompt
  };
  for (const Shape& shape : shapes) {
    const double scale = 1 / std::sqrt(static_cast<double>(shape.D));
    check({format(), shape, {.is_causal = true, .scale = scale}}, {}, /*seed=*/7,
          /*is_large=*/true);
    if (HasFailure()) return;
  }
}

TEST_P(Attention, EqualsTheFormulaForAnyCall) {
  CaseGenerator generator(/*seed=*/1);
  for (int i = 0; i < 60; ++i) {
    const Case c = generator.draw(format(), /*work=*/2'000'000);
    check(c, generator.layout(), generator.seed());
    if (HasFailure()) return;
  }
}

INSTANTIATE_ATTENTION_TEST(Attention);

}  // namespace
}  // namespace mqa::kernels
