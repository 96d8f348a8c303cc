// What the driver of gradients is built from, compiled once per ISA like the tiles of attention.
#pragma once

#include "tile.h"

namespace mqa::kernels::cpu {

// Where a tile of rows adds its share to the gradients of one head's keys and values.
template <class Acc>
struct CacheGrads {
  Acc* key;  // [S, key_stride], or null
  int64_t key_stride;
  Acc* value;
  int64_t value_stride;
};

template <class Acc>
struct BackwardOps {
  int64_t (*scratch_size)(const BackwardParams&);  // bytes

  // Writes grad_query and row_sums of the tile's rows; adds to the other gradients.
  void (*differentiate)(const BackwardParams&, const RowTile&, const CacheGrads<Acc>&,
                        void* scratch);

  // Sums have padded rows, in whole blocks of so many slots; 0: they can be the gradients
  // themselves where these are in Acc.
  int64_t padding;
};

// The ones for these dtypes on the ISA in use.
template <class Acc>
const BackwardOps<Acc>& backward_ops(const BackwardParams& params);

}  // namespace mqa::kernels::cpu
