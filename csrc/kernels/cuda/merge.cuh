// Merges attention over disjoint sets of keys: kernels/cpu/merge.h has the formula.
//
// A warp has a row and walks over its columns. Time: the bytes of the parts.
#pragma once

#include "../formats.h"
#include "device.cuh"
#include "merge.h"
#include "partial.cuh"

namespace mqa::kernels::cuda {

inline constexpr int kMergeWarps = 4;

struct MergeArgs {
  int64_t rows, width;
  int parts;
  const void* outs[kMaxMergeParts];
  const float* lses[kMaxMergeParts];
  void* out;
  float* lse;
};

template <class Format>
KERNEL(kMergeWarps * 32)
merge_rows(const GRID_CONSTANT MergeArgs a) {
  using Storage = typename Format::Storage;
  const int64_t row = int64_t{block_index()} * kMergeWarps + warp_index();
  if (row >= a.rows) return;
  const auto lse = [&](int part) { return load<float>(a.lses[part] + row); };
  float largest = -INFINITY, sum = 0;
  for (int i = 0; i < a.parts; ++i) largest = fmaxf(largest, lse(i));
  const float base = base_of(largest);
  for (int i = 0; i < a.parts; ++i) sum += expf(lse(i) - base);
  if (lane_index() == 0) store(a.lse + row, base + logf(sum));
  for (int64_t column = lane_index(); column < a.width; column += 32) {
    const int64_t at = row * a.width + column;
    float total = 0;
    for (int i = 0; i < a.parts; ++i) {
      if (lse(i) == -INFINITY) continue;  // its out may be anything
      const auto x = load<Storage>(static_cast<const Storage*>(a.outs[i]) + at);
      total += expf(lse(i) - base) * Format::widen(x);
    }
    store(static_cast<Storage*>(a.out) + at, Format::narrow(sum == 0 ? 0 : total / sum));
  }
}

}  // namespace mqa::kernels::cuda
