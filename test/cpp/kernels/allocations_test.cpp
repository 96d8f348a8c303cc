// A decode step's kernels allocate nothing once their workspace is there.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <new>
#include <vector>

#include "kernels/cpu/append.h"
#include "kernels/cpu/attention.h"

namespace {
int64_t allocations = 0;
}

// Not inlined: gcc would see memory of malloc that is deleted, and warn.
[[gnu::noinline]] void* operator new(size_t bytes) {
  ++allocations;
  if (void* memory = std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace mqa::kernels {
namespace {

template <class Call>
int64_t allocations_of_second(const Call& call) {
  call();
  const int64_t before = allocations;
  call();
  return allocations - before;
}

struct Step {
  static constexpr int64_t B = 2, H_q = 8, S = 700, D = 64;
  std::vector<float> query = std::vector<float>(B * H_q * D, 0.1f), out = query;
  std::vector<float> cache = std::vector<float>(B * S * D, 0.2f);
  std::vector<int64_t> positions = {300, S - 1}, seq_lens = {301, S};
  Threads threads;

  Step() {  // two threads, so that chunks run side by side as well
    threads.count = 2;
    threads.parallel_for = [](int64_t count, RangeBody body) {
      body(0, count / 2);
      body(count / 2, count);
    };
  }
  Cache params() { return {cache.data(), DType::kFloat32, S * D, S * D, D, {}}; }
};

TEST(Allocations, AppendMakesNone) {
  Step step;
  const AppendParams::Side side{step.params(),   false,   Step::D, step.query.data(),
                                DType::kFloat32, Step::D, Step::D, Step::D};
  const AppendParams params{Step::B, 1, 1, step.positions.data(), {}, side, side};
  EXPECT_EQ(allocations_of_second([&] { cpu::append(params, step.threads); }), 0);
}

TEST(Allocations, AttentionMakesNone) {
  Step step;
  AttentionParams p{};
  p.B = Step::B, p.H_q = Step::H_q, p.H_kv = 1, p.T = 1, p.S = Step::S;
  p.D = p.D_v = Step::D;
  p.query = step.query.data();
  p.query_batch_stride = Step::H_q * Step::D, p.query_head_stride = Step::D;
  p.query_token_stride = Step::D;
  p.dtype = DType::kFloat32;
  p.key = p.value = step.params();
  p.seq_lens = step.seq_lens.data();
  p.window_left = p.window_right = -1;
  p.scale = 1 / std::sqrt(double{Step::D});
  p.out = step.out.data();
  EXPECT_EQ(allocations_of_second([&] { cpu::attention(p, step.threads); }), 0);
  EXPECT_EQ(allocations_of_second([&] { cpu::attention(p, {}); }), 0);
}

}  // namespace
}  // namespace mqa::kernels
