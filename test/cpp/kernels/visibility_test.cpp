#include "kernels/visibility.h"

#include <gtest/gtest.h>

namespace mqa::kernels {
namespace {

AttentionParams params(int64_t T, int64_t S) {
  AttentionParams p{};
  p.T = T;
  p.S = S;
  p.window_left = p.window_right = -1;
  return p;
}

void expect_range(KeyRange range, int64_t begin, int64_t end) {
  EXPECT_EQ(range.begin, begin);
  EXPECT_EQ(range.end, end);
}

TEST(Visibility, SeesEverythingWithoutMasks) {
  expect_range(visible_keys(params(2, 7), 0, 0), 0, 7);
}

TEST(Visibility, CausalIsAlignedBottomRight) {
  AttentionParams p = params(3, 7);
  p.is_causal = true;
  expect_range(visible_keys(p, 0, 0), 0, 5);
  expect_range(visible_keys(p, 0, 2), 0, 7);
  const int64_t lens[] = {2};
  p.seq_lens = lens;
  EXPECT_TRUE(visible_keys(p, 0, 0).empty());  // its diagonal lies before the first key
  expect_range(visible_keys(p, 0, 1), 0, 1);
}

TEST(Visibility, WindowsCountKeysBesideTheDiagonal) {
  AttentionParams p = params(1, 10);
  p.window_left = 3;
  expect_range(visible_keys(p, 0, 0), 6, 10);
  p.window_right = 0;
  p.T = 5;
  expect_range(visible_keys(p, 0, 1), 3, 7);
  p.window_left = 0;
  expect_range(visible_keys(p, 0, 1), 6, 7);
}

TEST(Visibility, RangeOfSeveralTokensCoversEachOfThem) {
  AttentionParams p = params(8, 20);
  p.window_left = 4;
  p.is_causal = true;
  expect_range(visible_keys(p, 0, 2, 5), visible_keys(p, 0, 2).begin, visible_keys(p, 0, 5).end);
}

}  // namespace
}  // namespace mqa::kernels
