// Calls of the kernels in forward.cpp, enough to notice the faults of planted_faults.py.
#include <gtest/gtest.h>

#include "emulation.h"
#include "kernels/attention_call.h"
#include "kernels/attention_oracle.h"

namespace mqa::kernels {

void run_backward(BackwardParams&, const Threads&) {
  throw std::logic_error("no gradients in this test");
}

namespace {

struct Call {
  Case problem;
  Layout layout;
  int64_t multiprocessors;
};

constexpr Format kPlain{DType::kBFloat16, DType::kBFloat16};
constexpr Format kInt8{DType::kBFloat16, DType::kInt8};
const Call kCalls[] = {
    {{kPlain, {.B = 2, .G = 8, .S = 700}, {}}, {}, 100},
    {{kPlain, {.B = 3, .G = 8, .S = 1000}, {}}, {.page_size = 24}, 1},  // whole groups of chunks
    {{kPlain, {.B = 4, .G = 5, .T = 6, .S = 600}, {.is_causal = true}}, {}, 1},  // two warps
    {{kPlain, {.G = 4, .T = 4, .S = 333}, {.is_causal = true, .window_left = 40}}, {}, 100},
    {{kInt8, {.B = 2, .G = 8, .S = 200}, {}}, {}, 100},
    {{kPlain, {.B = 2, .G = 8, .S = 150, .D = 128, .D_v = 128}, {}}, {}, 100},
    {{kPlain, {.B = 2, .G = 8, .S = 90, .D = 56, .D_v = 56}, {}}, {.spare_slots = 5}, 100},
};

void check_all() {
  for (const Call& call : kCalls) {
    SCOPED_TRACE(testing::Message() << call.problem << ", " << call.layout);
    const Problem problem(call.problem, /*seed=*/9);
    Threads device;
    device.count = call.multiprocessors;
    Formula(problem).expect_close(attend(problem, call.layout, device),
                                  {.relative = unit_roundoff(DType::kBFloat16)});
    if (testing::Test::HasFailure()) return;
  }
}

TEST(Kernels, GiveTheFormula) { check_all(); }

// A device with little to do takes single chunks, a busy one whole groups of them. Many rows: few
// show another order of sums once they are rounded to bfloat16.
TEST(Kernels, GiveTheSameBitsHoweverChunksAreDealtOut) {
  const Problem problem({kPlain, {.B = 8, .G = 16, .S = 1000}, {}}, /*seed=*/9);
  Threads idle, busy;
  idle.count = 100, busy.count = 1;
  const Result chunks = attend(problem, {}, idle), groups = attend(problem, {}, busy);
  for (int64_t row = 0; row < chunks.lse.size(); ++row) {
    ASSERT_EQ(chunks.bits(row), groups.bits(row)) << "bits of row " << row;
  }
}

TEST(Kernels, HaveNoRacesInAnySchedule) {
  for (unsigned seed : {1, 2, 3}) {
    emulation::set_options({.detect_races = true, .schedule_seed = seed});
    check_all();
  }
  emulation::set_options({});
}

TEST(Kernels, HaveNoBankConflicts) {
  emulation::take_stats();
  check_all();
  EXPECT_EQ(emulation::take_stats().bank_conflicts, 0u);
}

}  // namespace
}  // namespace mqa::kernels
