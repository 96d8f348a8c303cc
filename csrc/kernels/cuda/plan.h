// How an attention call is divided into blocks.
#pragma once

#include "attention.h"
#include "attention_args.h"
#include "split.h"
#include "tile.h"

namespace mqa::kernels::cuda {

// Rows of the largest tile that registers and shared memory hold. `has_units`: Tile::kHasUnits.
constexpr int most_tile_rows(int head_dim, bool is_float, bool has_units) {
  if (head_dim > 256) return 16;
  if (is_float) return head_dim > 128 ? 32 : 64;
  return head_dim > 128 || has_units ? 64 : 128;
}

// Rows of a tile that suit a KV head's G * T rows.
constexpr int tile_rows(int64_t rows, int most) {
  int tile = 16;
  while (tile < rows && tile < most) tile *= 2;
  return tile;
}

// Shared memory that every tile finds room in with totals for a group of chunks, and what small
// tiles need for that.
inline constexpr int kSmemOfAnyTile = 160 * 1024, kSmemOfSmallTiles = 99 * 1024;
constexpr bool is_small(int tile_rows, int64_t query_row_bytes) {
  return tile_rows <= 64 && tile_rows * query_row_bytes <= 16 * 1024;
}

struct Plan {
  int head_dim;  // padded
  int tile_rows, row_tiles;
  int parts, part_chunks;
  int64_t blocks;
  int64_t partials;  // rows of partial results
  int64_t partial_width;
};

inline Plan plan_of(const AttentionParams& p, const Device& device) {
  const int64_t rows = p.H_q / p.H_kv * p.T, D = std::max(p.D, p.D_v);
  Plan plan{};
  plan.head_dim = D <= 64 ? 64 : D <= 128 ? 128 : D <= 256 ? 256 : 576;
  const bool has_units = p.dtype == DType::kFloat16 && size_of(p.key.dtype) == 1;
  plan.tile_rows =
      tile_rows(rows, most_tile_rows(plan.head_dim, p.dtype == DType::kFloat32, has_units));
  plan.row_tiles = static_cast<int>((rows + plan.tile_rows - 1) / plan.tile_rows);
  const int64_t chunks = most_chunks(p.S, split_tiles(p.H_kv, rows));
  const int64_t items = p.B * p.H_kv * plan.row_tiles;
  // Whole groups need less memory for partial results, but a device wants some warps on each of its
  // multiprocessors.
  const bool is_busy = items * chunks >= 4 * kGroupChunks * device.multiprocessors;
  const bool by_groups = chunks > 1 && is_busy &&
                         (is_small(plan.tile_rows, plan.head_dim * size_of(p.dtype)) ||
                          device.smem_per_block >= kSmemOfAnyTile);
  plan.part_chunks = by_groups ? kGroupChunks : 1;
  plan.parts = static_cast<int>((chunks + plan.part_chunks - 1) / plan.part_chunks);
  plan.blocks = items * plan.parts;
  plan.partials = plan.parts > 1 ? plan.blocks * plan.tile_rows : 0;
  plan.partial_width = (p.D_v + 3) / 4 * 4;
  return plan;
}

}  // namespace mqa::kernels::cuda
