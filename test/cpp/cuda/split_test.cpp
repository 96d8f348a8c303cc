// The pure functions that divide a call's work.
#include "kernels/cuda/split.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/cuda/plan.h"

namespace mqa::kernels::cuda {
namespace {

constexpr Device kDevice{
    .multiprocessors = 132, .smem_per_block = 227 * 1024, .compute_capability = 90};

int64_t chunks_of(int64_t seq_len, int64_t tiles) {
  const int64_t keys = chunk_keys(seq_len, tiles);
  return (seq_len + keys - 1) / keys;
}

TEST(Split, ChunksArePowersOfTwoAndNotTooMany) {
  for (int64_t tiles : {1, 2, 3, 8, 71, 300}) {
    int64_t most = 1;
    for (int64_t seq_len = 0; seq_len < 70'000; seq_len += 61) {
      const int64_t keys = chunk_keys(seq_len, tiles);
      ASSERT_GE(keys, kMinChunkKeys);
      ASSERT_EQ(keys & (keys - 1), 0);
      most = std::max(most, chunks_of(seq_len, tiles));
      ASSERT_LE(chunks_of(seq_len, tiles), wanted_chunks(tiles));
      ASSERT_LE(most, most_chunks(seq_len, tiles)) << seq_len;
    }
    ASSERT_EQ(most, wanted_chunks(tiles));
  }
}

TEST(Split, FillsALargeDeviceAtBatchOne) {
  EXPECT_GE(chunks_of(8192, /*tiles=*/1), 128);
  EXPECT_GE(chunks_of(32'768, 1), 2 * 128);
  EXPECT_GE(8 * chunks_of(8192, 8), 2 * 128);
  EXPECT_EQ(chunks_of(int64_t{1} << 40, 1), kMaxChunks);
}

TEST(Split, HasOneClassForUpTo64Rows) {
  EXPECT_EQ(split_tiles(2, 1), 2);
  EXPECT_EQ(split_tiles(2, 64), 2);
  EXPECT_EQ(split_tiles(2, 65), 4);
}

AttentionParams call(int64_t B, int64_t H_kv, int64_t G, int64_t T, int64_t S, int64_t D) {
  AttentionParams p{};
  p.B = B, p.H_kv = H_kv, p.H_q = H_kv * G, p.T = T, p.S = S, p.D = p.D_v = D;
  p.dtype = DType::kBFloat16;
  return p;
}

TEST(Plan, PadsHeadDimsAndRows) {
  EXPECT_EQ(plan_of(call(1, 1, 8, 1, 100, 80), kDevice).head_dim, 128);
  EXPECT_EQ(plan_of(call(1, 1, 8, 1, 100, 192), kDevice).head_dim, 256);
  EXPECT_EQ(tile_rows(1, 128), 16);
  EXPECT_EQ(tile_rows(17, 128), 32);
  EXPECT_EQ(tile_rows(71, 128), 128);
  EXPECT_EQ(tile_rows(71, 64), 64);
  EXPECT_EQ(plan_of(call(1, 1, 71, 1, 100, 128), kDevice).tile_rows, 128);
  EXPECT_EQ(plan_of(call(1, 1, 71, 1, 100, 256), kDevice).tile_rows, 64);
  EXPECT_EQ(plan_of(call(1, 1, 71, 1, 100, 576), kDevice).tile_rows, 16);
}

TEST(Plan, TakesWholeGroupsWhereThereIsWorkEnough) {
  const Plan alone = plan_of(call(1, 1, 16, 1, 8192, 128), kDevice);
  EXPECT_EQ(alone.part_chunks, 1);
  EXPECT_EQ(alone.blocks, 128);
  const Plan many = plan_of(call(64, 1, 16, 1, 8192, 128), kDevice);
  EXPECT_EQ(many.part_chunks, kGroupChunks);
  EXPECT_EQ(many.blocks, 64 * 128 / kGroupChunks);
  EXPECT_EQ(many.partials, many.blocks * 16);
  // A prompt has blocks enough without cutting its keys.
  const Plan prefill = plan_of(call(4, 8, 4, 4096, 4096, 128), kDevice);
  EXPECT_EQ(prefill.parts, 1);
  EXPECT_EQ(prefill.partials, 0);
}

TEST(Plan, LeavesGroupsWhereSharedMemoryIsSmall) {
  Device small = kDevice;
  small.smem_per_block = 99 * 1024;
  EXPECT_EQ(plan_of(call(64, 1, 32, 1, 8192, 256), small).part_chunks, kGroupChunks);
  EXPECT_EQ(plan_of(call(64, 1, 71, 1, 8192, 128), small).part_chunks, 1);
  EXPECT_EQ(plan_of(call(64, 1, 71, 1, 8192, 128), kDevice).part_chunks, kGroupChunks);
}

TEST(Plan, BoundsTheWorkspace) {
  for (int64_t B : {1, 8, 64, 256}) {
    for (int64_t G : {1, 16, 128}) {
      const int64_t bytes = attention_workspace(call(B, 1, G, 1, 131'072, 128), kDevice);
      EXPECT_LE(bytes, std::max(B * 5, int64_t{160}) << 20) << B << ", " << G;
    }
  }
}

}  // namespace
}  // namespace mqa::kernels::cuda
