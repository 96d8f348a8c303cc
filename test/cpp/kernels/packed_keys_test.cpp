// Attention over packed keys has the bits of attention over the same keys in order, which the other
// tests compare with the formula.
#include <gtest/gtest.h>

#include "attention_call.h"
#include "attention_cases.h"

namespace mqa::kernels {
namespace {

using Order = Layout::Order;

class PackedKeys : public AttentionTest {
 protected:
  void expect_same(const Case& c, unsigned seed) const {
    const Layout layouts[] = {
        {.is_packed = true},
        {.spare_slots = 40, .is_packed = true},
        {.is_aligned = false, .is_packed = true},
        {.order = Order::kSlotsFirst, .is_packed = true},
        {.order = Order::kGaps, .is_packed = true},
        {.order = Order::kLayers, .is_packed = true},
        {.page_size = 16, .is_packed = true},
        {.order = Order::kSlotsFirst, .page_size = 48, .is_packed = true},
    };
    const Problem problem(c, seed);
    const Result in_order = attend(problem);
    for (const Layout& layout : layouts) {
      SCOPED_TRACE(testing::Message() << c << ", " << layout << ", seed " << seed);
      const Result packed = attend(problem, layout, scrambled(2));
      for (int64_t row = 0; row < in_order.lse.size(); ++row) {
        ASSERT_EQ(packed.bits(row), in_order.bits(row)) << row;
      }
    }
  }
};

TEST_P(PackedKeys, EqualKeysInOrder) {
  const Shape shapes[] = {
      {.S = 2100},  // split over keys
      {.B = 2, .G = 3, .S = 300, .D = 80, .D_v = 96},
      {.H_kv = 2, .G = 8, .S = 515, .D = 33, .D_v = 17},
      {.G = 5, .T = 7, .S = 600, .D = 80, .D_v = 80},
      {.G = 2, .T = 4, .S = 129, .D = 576, .D_v = 512},
  };
  for (const Shape& shape : shapes) expect_same({format(), shape, {}}, /*seed=*/1);
  CaseGenerator generator(/*seed=*/5);
  for (int i = 0; i < drawn_calls() && !HasFailure(); ++i) {
    const Case c = generator.draw(format(), /*work=*/2'000'000);
    expect_same(c, generator.seed());
  }
}

INSTANTIATE_ATTENTION_TEST(PackedKeys);

}  // namespace
}  // namespace mqa::kernels
