// The bit contract of docs/design.md: a row's bits depend on its query, the keys and values that it
// sees, and the options.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "attention_call.h"
#include "attention_cases.h"

namespace mqa::kernels {
namespace {

using Order = Layout::Order;

class AttentionBits : public AttentionTest {
 protected:
  // Calls body(problem) on the shapes that were hard to get right, then on drawn ones.
  template <class Body>
  void for_each_problem(const Body& body, bool is_causal = false) const {
    const Shape shapes[] = {
        {.G = 5, .S = 2100},                               // split over keys
        {.B = 2, .G = 9, .T = 50, .S = 700},               // several tiles of rows
        {.G = 2, .T = 4, .S = 515, .D = 576, .D_v = 512},  // few tokens, wide
        {.B = 3, .H_kv = 2, .G = 4, .S = 258, .D = 80, .D_v = 96},
        {.T = 260, .S = 260},  // prefill of one head
    };
    CaseGenerator generator(/*seed=*/2);
    std::vector<Case> cases;
    for (const Shape& shape : shapes) cases.push_back({format(), shape, {}});
    for (int i = 0; i < drawn_calls(); ++i)
      cases.push_back(generator.draw(format(), /*work=*/4'000'000));
    for (Case& c : cases) {
      c.options.is_causal |= is_causal;
      const unsigned seed = generator.seed();
      SCOPED_TRACE(testing::Message() << c << ", seed " << seed);
      body(Problem(c, seed));
      if (HasFailure()) return;
    }
  }

  // That the part computed on its own has the bits that it has in the whole.
  static void expect_same_part(const Problem& whole, const Result& result,
                               const Problem::Part& part, const Layout& layout = {}) {
    const Result alone = attend(whole.select(part), layout);
    int64_t row = 0;
    for (int64_t b : part.batch) {
      for (int64_t h = part.head; h < part.head + part.heads; ++h) {
        for (int64_t t = part.begin; t < part.end; ++t) {
          ASSERT_EQ(alone.bits(row++), result.bits(whole.row(b, h, t)))
              << "batch " << b << ", head " << h << ", token " << t << " of tokens " << part.begin
              << " to " << part.end;
        }
      }
    }
  }

  static void expect_same(const Result& a, const Result& b) {
    for (int64_t row = 0; row < a.lse.size(); ++row) ASSERT_EQ(a.bits(row), b.bits(row)) << row;
  }
};

TEST_P(AttentionBits, AreTheSameForEveryThreadCount) {
  for_each_problem([](const Problem& problem) {
    const Result serial = attend(problem);
    for (int64_t threads : {2, 5, 16}) expect_same(attend(problem, {}, scrambled(threads)), serial);
    expect_same(attend(problem, {}, concurrent()), serial);
  });
}

TEST_P(AttentionBits, AreTheSameInEveryLayout) {
  const Layout layouts[] = {
      {.spare_slots = 300},
      {.is_aligned = false},
      {.order = Order::kSlotsFirst, .spare_slots = 1},
      {.order = Order::kLayers},
      {.order = Order::kGaps},
      {.page_size = 1},
      {.page_size = 16},
      {.page_size = 24},
      {.page_size = 128},
      {.order = Order::kSlotsFirst, .page_size = 16},
      {.order = Order::kLayers, .page_size = 128},
  };
  for_each_problem([&](const Problem& problem) {
    const Result contiguous = attend(problem);
    for (const Layout& layout : layouts) {
      SCOPED_TRACE(testing::Message() << layout);
      expect_same(attend(problem, layout), contiguous);
    }
  });
}

TEST_P(AttentionBits, DoNotDependOnUnusedSlots) {
  for_each_problem([](const Problem& problem) {
    const Result result = attend(problem);
    for (double fill : {double{INFINITY}, -double{INFINITY}, 6e4, 1.}) {
      expect_same(attend(problem, {.spare_slots = 20, .fill = fill}), result);
    }
  });
}

// Decode steps, speculative blocks and chunks of a prompt are parts of one prefill.
TEST_P(AttentionBits, AreTheSameForTokensAloneAndTogether) {
  const auto check = [](const Problem& problem) {
    const Result result = attend(problem);
    const int64_t T = problem.shape.T;
    // Earlier tokens stand before the first key of some sequence.
    const int64_t shortest = *std::min_element(problem.seq_lens.begin(), problem.seq_lens.end());
    const int64_t first = std::max<int64_t>(0, T - shortest);
    for (int64_t block : {1, 4, 17, 130}) {
      const int64_t step = std::max(block, (T - first) / 10);  // some of many
      for (int64_t t = first; t < T; t += step) {
        Problem::Part part = problem.whole();
        part.begin = t;
        part.end = std::min(t + block, T);
        expect_same_part(problem, result, part);
      }
    }
  };
  for_each_problem(check, /*is_causal=*/true);
}

TEST_P(AttentionBits, AreTheSameAloneAndInABatch) {
  for_each_problem([](const Problem& problem) {
    const Result result = attend(problem);
    Problem::Part part = problem.whole();
    std::reverse(part.batch.begin(), part.batch.end());
    part.batch.push_back(0);
    expect_same_part(problem, result, part, {.order = Order::kSlotsFirst});
    for (int64_t b = 0; b < problem.shape.B; ++b) {
      part.batch = {b};
      expect_same_part(problem, result, part);
    }
  });
}

TEST_P(AttentionBits, AreTheSameForAHeadAloneAndInItsGroup) {
  for_each_problem([](const Problem& problem) {
    const Result result = attend(problem);
    const int64_t heads = problem.shape.H_q();
    for (int64_t head = 0; head < heads; head += 1 + heads / 5) {  // some of many
      Problem::Part part = problem.whole();
      part.head = head, part.heads = 1;
      expect_same_part(problem, result, part);
    }
  });
}

INSTANTIATE_ATTENTION_TEST(AttentionBits);

}  // namespace
}  // namespace mqa::kernels
