// Picks the compiled shape of a plan. Included once for each pair of dtypes.
#pragma once

#include "attend.cuh"
#include "instances.h"

namespace mqa::kernels::cuda {

template <class Tile>
Status launch_tile(const Plan& plan, const AttentionArgs& args, Stream stream) {
  constexpr int kSmem =
      is_small(Tile::kRows, Tile::kQueryRowBytes) ? kSmemOfSmallTiles : kSmemOfAnyTile;
  static_assert(Tile::smem_bytes(/*has_totals=*/true) <= kSmem);
  return launch(attend<Tile>, plan.blocks, Tile::kThreads, Tile::smem_bytes(plan.part_chunks > 1),
                stream, /*dependent=*/false, args);
}

template <class Query, class Stored, int kD>
Status launch_head_dim(const Plan& plan, const AttentionArgs& args, Stream stream) {
  using Smallest = Tile<kD, kD, 1, 1, 1, Query, Stored>;
  constexpr int kMostRows = most_tile_rows(kD, Smallest::kIsFloat, Smallest::kHasUnits);
  const auto launch_rows = [&](auto row_warps, auto row_groups) {
    using Rows = Tile<kD, kD, row_warps, row_groups, 1, Query, Stored>;
    return launch_tile<Rows>(plan, args, stream);
  };
  constexpr std::integral_constant<int, 1> kOne;
  constexpr std::integral_constant<int, 2> kTwo;
  constexpr std::integral_constant<int, 4> kFour;
  if constexpr (kMostRows >= 128) {
    if (plan.tile_rows == 128) return launch_rows(kFour, kTwo);
  }
  if constexpr (kMostRows >= 64) {
    if (plan.tile_rows == 64) return launch_rows(kFour, kOne);
  }
  if (plan.tile_rows == 32) return launch_rows(kTwo, kOne);
  return launch_tile<Smallest>(plan, args, stream);
}

template <class Query, class Stored>
Status launch_attend(const Plan& plan, const AttentionArgs& args, Stream stream) {
  switch (plan.head_dim) {
    case 64:
      return launch_head_dim<Query, Stored, 64>(plan, args, stream);
    case 128:
      return launch_head_dim<Query, Stored, 128>(plan, args, stream);
    case 256:
      return launch_head_dim<Query, Stored, 256>(plan, args, stream);
    default:
      return launch_tile<Tile<576, 512, 1, 1, 4, Query, Stored>>(plan, args, stream);
  }
}

}  // namespace mqa::kernels::cuda
