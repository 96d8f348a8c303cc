// How blocks and threads are started, and in which order.
#include <algorithm>
#include <numeric>
#include <vector>

#include "one_block.h"

namespace mqa::kernels::cuda {
namespace {

KERNEL(32) count(int* calls, int step) {
  if (thread_index() == 0) store(calls + block_index(), load<int>(calls + block_index()) + step);
}

TEST(Launch, RunsEachBlockOnceWithItsArguments) {
  std::vector<int> calls(7);
  const auto start = [&](int64_t blocks, bool dependent) {
    return launch(count, blocks, /*threads=*/32, /*smem_bytes=*/0, Stream{}, dependent,
                  calls.data(), 3);
  };
  EXPECT_EQ(start(7, false), kSuccess);
  EXPECT_EQ(calls, std::vector<int>(7, 3));
  EXPECT_EQ(start(0, false), kSuccess);
  EXPECT_EQ(start(7, true), kSuccess);
  EXPECT_EQ(calls, std::vector<int>(7, 6));
}

TEST(Launch, ThreadsKnowTheirPlace) {
  std::vector<int> seen(96, -1);
  emulation::launch(/*blocks=*/1, /*threads=*/96, /*smem_bytes=*/0, [&] {
    EXPECT_EQ(thread_index(), warp_index() * 32 + lane_index());
    seen[thread_index()] = warp_index();
    wait_for_previous_kernel();
  });
  for (int i = 0; i < 96; ++i) EXPECT_EQ(seen[i], i / 32);
}

TEST(Launch, TakesWholeWarpsOnly) {
  for (int threads : {0, 33, 1056}) {
    EXPECT_THROW(emulation::launch(1, threads, 0, [] {}), emulation::Error) << threads;
  }
}

TEST(Launch, GoesOnAfterAnError) {
  EXPECT_NE(run([] {
              if (warp_index() == 0) sync_block();
            }),
            "");
  EXPECT_EQ(run([] { sync_block(); }), "");
}

struct Order {
  std::vector<int> blocks, threads;  // the latter in each block, one after the other
  bool operator==(const Order&) const = default;
};
Order order(unsigned seed) {
  Order order;
  emulation::set_options({.schedule_seed = seed});
  emulation::launch(/*blocks=*/8, /*threads=*/64, /*smem_bytes=*/0, [&] {
    if (thread_index() == 0) order.blocks.push_back(block_index());
    sync_block();
    order.threads.push_back(thread_index());
    sync_block();
  });
  emulation::set_options({});
  return order;
}

TEST(Schedule, IsShuffledAsItsSeedSays) {
  const auto sorted = [](std::vector<int> x) {
    std::sort(x.begin(), x.end());
    return x;
  };
  const Order plain = order(0);
  EXPECT_TRUE(std::is_sorted(plain.blocks.begin(), plain.blocks.end()));
  for (unsigned seed : {1, 2, 3}) {
    const Order shuffled = order(seed);
    EXPECT_EQ(shuffled, order(seed));
    EXPECT_NE(shuffled.blocks, plain.blocks);
    EXPECT_NE(shuffled.threads, plain.threads);
    EXPECT_EQ(sorted(shuffled.blocks), plain.blocks);
    EXPECT_EQ(sorted(shuffled.threads), sorted(plain.threads));
  }
  EXPECT_NE(order(1), order(2));
}

}  // namespace
}  // namespace mqa::kernels::cuda
