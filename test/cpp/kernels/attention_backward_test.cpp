// Attention's gradients against their formula, and their bits.
#include <gtest/gtest.h>

#include <cmath>

#include "attention_call.h"
#include "attention_cases.h"
#include "attention_gradient_oracle.h"

namespace mqa::kernels {
namespace {

class AttentionBackward : public AttentionTest {
 protected:
  Case draw(CaseGenerator& generator, int64_t work) const {
    Case c = generator.draw(format(), work);
    while (!has_backward(c)) c = generator.draw(format(), work);
    return c;
  }

  void check(const Case& c, const Layout& layout, unsigned seed) const {
    SCOPED_TRACE(testing::Message() << c << ", " << layout << ", seed " << seed);
    const Problem problem(c, seed);
    const OutGrads grads = random_grads(problem, seed);
    const GradientFormula formula(problem, grads, weight_rounding(isa(), format()));
    formula.expect_close(differentiate(problem, grads, layout));
  }
};

TEST_P(AttentionBackward, EqualsTheFormulaForLargeSizes) {
  const Shape shapes[] = {
      {.B = 2, .G = 16, .T = 30, .S = 30},                // MQA training
      {.H_kv = 3, .G = 3, .T = 100, .S = 100},            // GQA
      {.H_kv = 33, .G = 26, .T = 10, .S = 10},            // many heads
      {.G = 8, .T = 40, .S = 330, .D = 128, .D_v = 128},  // a later part of a sequence
      {.G = 16, .T = 2, .S = 515, .D = 192, .D_v = 128},  // D_v != D
      {.G = 4, .S = 600, .D = 256, .D_v = 256},
  };
  for (const Shape& shape : shapes) {
    const double scale = 1 / std::sqrt(static_cast<double>(shape.D));
    check({format(), shape, {.is_causal = true, .scale = scale}}, {}, /*seed=*/7);
    if (HasFailure()) return;
  }
}

TEST_P(AttentionBackward, EqualsTheFormulaForAnyCall) {
  CaseGenerator generator(/*seed=*/3);
  for (int i = 0; i < 40; ++i) {
    const Case c = draw(generator, /*work=*/1'000'000);
    check(c, generator.layout(), generator.seed());
    if (HasFailure()) return;
  }
}

void expect_same_bits(const Numbers& a, const Numbers& b) {
  const int64_t bytes = a.size() * size_of(a.dtype());
  EXPECT_EQ(std::string(a.data(), bytes), std::string(b.data(), bytes));
}

TEST_P(AttentionBackward, HasTheSameBitsForEveryThreadCount) {
  CaseGenerator generator(/*seed=*/4);
  for (int i = 0; i < 10; ++i) {
    const Case c = draw(generator, /*work=*/2'000'000);
    const unsigned seed = generator.seed();
    SCOPED_TRACE(testing::Message() << c << ", seed " << seed);
    const Problem problem(c, seed);
    const OutGrads grads = random_grads(problem, seed);
    const Gradients serial = differentiate(problem, grads);
    for (const Threads& threads : {scrambled(3), concurrent()}) {
      const Gradients other = differentiate(problem, grads, {}, threads);
      expect_same_bits(other.query, serial.query);
      expect_same_bits(other.key, serial.key);
      expect_same_bits(other.value, serial.value);
      expect_same_bits(other.mask, serial.mask);
    }
    if (HasFailure()) return;
  }
}

std::vector<AttentionTest::ParamType> kernels_with_backward() {
  auto kernels = kernels_with_their_own_code();
  std::erase_if(kernels,
                [](const auto& kernel) { return !has_backward({std::get<1>(kernel), {}, {}}); });
  return kernels;
}

INSTANTIATE_TEST_SUITE_P(Kernels, AttentionBackward, testing::ValuesIn(kernels_with_backward()),
                         name_of_test);

}  // namespace
}  // namespace mqa::kernels
