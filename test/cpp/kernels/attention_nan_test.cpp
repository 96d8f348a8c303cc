// NaN and infinity in queries, keys and values: they spoil the rows that see them, and no others.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "attention_call.h"
#include "attention_cases.h"

namespace mqa::kernels {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// What hides keys from rows.
const Options kHiding[] = {
    {},
    {.is_causal = true},
    {.is_causal = true, .window_left = 20},
    {.window_left = 3, .window_right = 10},
    {.mask = MaskKind::kBool},
    {.is_causal = true, .mask = MaskKind::kFloat32},
    {.is_causal = true, .softcap = 5, .has_sinks = true, .mask = MaskKind::kAsQuery},
};

const Shape kShapes[] = {
    {.B = 2, .H_kv = 2, .S = 300},
    {.G = 4, .S = 40, .D = 33, .D_v = 17},
    {.T = 4, .S = 4},
    {.H_kv = 2, .G = 5, .T = 3, .S = 270, .D = 80, .D_v = 96},
    {.T = 40, .S = 40},
    {.G = 16, .T = 9, .S = 290, .D = 32, .D_v = 32},
    {.G = 2, .T = 130, .S = 290, .D = 16, .D_v = 16},
};

struct Spoiled {
  int64_t b, kv_head, slot, column;
};

// Quantised rows have no infinity, and int8 no NaN: their scale has.
void spoil(Numbers& codes, Numbers& scales, const Problem& p, const Spoiled& at, double with) {
  const int64_t slot = p.slot(at.b, at.kv_head, at.slot);
  if (p.is_quantised()) {
    scales.set(slot, with);
  } else {
    codes.set(slot * (codes.size() / (p.shape.B * p.shape.H_kv * p.shape.S)) + at.column, with);
  }
}

class AttentionNaN : public AttentionTest {
 protected:
  // Calls body(problem, slots to spoil) for every shape and way of hiding.
  template <class Body>
  void for_each_problem(const Body& body) const {
    CaseGenerator random(/*seed=*/4);
    for (const Shape& shape : kShapes) {
      for (const Options& options : kHiding) {
        const Case c{format(), shape, options};
        SCOPED_TRACE(testing::Message() << c);
        const Problem problem(c, random.seed());
        std::vector<Spoiled> spoiled;
        for (int i = 0; i < 3; ++i) {
          const int64_t b = random.below(shape.B);
          if (problem.seq_lens[b] == 0) continue;
          spoiled.push_back({b, random.below(shape.H_kv), random.below(problem.seq_lens[b]),
                             random.below(std::min(shape.D, shape.D_v))});
        }
        body(problem, spoiled);
        if (HasFailure()) return;
      }
    }
  }
};

template <class Body>
void for_each_row(const Problem& p, const Body& body) {
  for (int64_t b = 0; b < p.shape.B; ++b) {
    for (int64_t h = 0; h < p.shape.H_q(); ++h) {
      for (int64_t t = 0; t < p.shape.T; ++t) body(b, h, t, p.row(b, h, t));
    }
  }
}

bool sees(const Problem& p, int64_t b, int64_t h, int64_t t, const Spoiled& at) {
  return at.b == b && at.kv_head == h / p.shape.G && p.sees(b, h, t, at.slot);
}

TEST_P(AttentionNaN, InAValueSpoilsItsColumnForTheRowsThatSeeIt) {
  for_each_problem([](const Problem& clean, const std::vector<Spoiled>& spoiled) {
    const Result expected = attend(clean);
    for (double with : {kNaN, double{INFINITY}}) {
      Problem problem = clean;
      for (const Spoiled& at : spoiled) {
        spoil(problem.value, problem.value_scales, problem, at, with);
      }
      const Result result = attend(problem);
      for_each_row(problem, [&](int64_t b, int64_t h, int64_t t, int64_t row) {
        EXPECT_EQ(result.lse[row], expected.lse[row]);
        for (int64_t d = 0; d < problem.shape.D_v; ++d) {
          bool finite = true;
          for (const Spoiled& at : spoiled) {
            const bool here = problem.is_quantised() || at.column == d;
            finite &= !(here && sees(problem, b, h, t, at));
          }
          const int64_t i = row * problem.shape.D_v + d;
          ASSERT_EQ(std::isfinite(result.out[i]), finite) << "row " << row << ", column " << d;
          if (finite) {
            ASSERT_EQ(result.out[i], expected.out[i]) << "row " << row << ", column " << d;
          }
        }
      });
    }
  });
}

TEST_P(AttentionNaN, InAKeySpoilsTheRowsThatSeeIt) {
  for_each_problem([](const Problem& clean, const std::vector<Spoiled>& spoiled) {
    const Result expected = attend(clean);
    for (double with : {kNaN, double{INFINITY}, -double{INFINITY}}) {
      Problem problem = clean;
      for (const Spoiled& at : spoiled) {
        spoil(problem.key, problem.key_scales, problem, at, with);
      }
      const Result result = attend(problem);
      for_each_row(problem, [&](int64_t b, int64_t h, int64_t t, int64_t row) {
        bool seen = false;
        for (const Spoiled& at : spoiled) seen |= sees(problem, b, h, t, at);
        if (!seen) {
          ASSERT_EQ(result.bits(row), expected.bits(row)) << "row " << row;
        } else if (std::isnan(with)) {  // an infinite key may give the weight 0
          ASSERT_TRUE(std::isnan(result.lse[row])) << "row " << row;
          for (int64_t d = 0; d < problem.shape.D_v; ++d) {
            ASSERT_TRUE(std::isnan(result.out[row * problem.shape.D_v + d])) << "row " << row;
          }
        }
      });
    }
  });
}

TEST_P(AttentionNaN, InAQuerySpoilsItsRow) {
  for_each_problem([](const Problem& clean, const std::vector<Spoiled>&) {
    const Result expected = attend(clean);
    for (int64_t spoiled : {int64_t{0}, clean.row(0, clean.shape.H_q() - 1, clean.shape.T / 2)}) {
      Problem problem = clean;
      problem.query.set(spoiled * problem.shape.D, kNaN);
      const Result result = attend(problem);
      for_each_row(problem, [&](int64_t b, int64_t h, int64_t t, int64_t row) {
        bool sees_keys = false;
        for (int64_t j = 0; j < problem.shape.S; ++j) sees_keys |= problem.sees(b, h, t, j);
        if (row == spoiled && sees_keys) {
          for (int64_t d = 0; d < problem.shape.D_v; ++d) {
            ASSERT_TRUE(std::isnan(result.out[row * problem.shape.D_v + d])) << "row " << row;
          }
        } else {
          ASSERT_EQ(result.bits(row), expected.bits(row)) << "row " << row;
        }
      });
    }
  });
}

INSTANTIATE_ATTENTION_TEST(AttentionNaN);

}  // namespace
}  // namespace mqa::kernels
