// Partial results: folding one into another, and what remains at the end.
#pragma once

#include "scores.h"

namespace mqa::kernels::cpu {
namespace {

template <class Acc>
void clear(const AttentionParams& p, int64_t rows, const Partial<Acc>& partial) {
  std::fill_n(partial.out, rows * padded(p.D_v), Acc{0});
  std::fill_n(partial.max, rows, kMinusInfinity<Acc>);
  std::fill_n(partial.sum, rows, Acc{0});
}

// total += part, both brought to the common maximum. A part that saw nothing changes nothing.
template <class Acc>
void fold(const AttentionParams& p, int64_t rows, const Partial<Acc>& part,
          const Partial<Acc>& total) {
  const int64_t width = padded(p.D_v);
  Acc keep[kTileRows], add[kTileRows];
  for (int64_t r = 0; r < rows; r += kLanes<Acc>) {
    const Vector<Acc> a = load(total.max + r), b = load(part.max + r), max = maximum(a, b);
    const Vector<Acc> base = base_of<Acc>(max);
    const Vector<Acc> k = exp2_nonpositive<true>(a - base), f = exp2_nonpositive<true>(b - base);
    store(total.max + r, max);
    store(total.sum + r, load(total.sum + r) * k + load(part.sum + r) * f);
    store(keep + r, k);
    store(add + r, f);
  }
  for (int64_t r = 0; r < rows; ++r) {
    Acc* out = total.out + r * width;
    const Acc* part_out = part.out + r * width;
    for (int64_t d = 0; d < width; d += kLanes<Acc>) {
      store(out + d, load(out + d) * keep[r] + load(part_out + d) * add[r]);
    }
  }
  clear_upper_lanes();
}

template <class Acc>
void finish(const AttentionParams& p, const RowTile& tile, const Partial<Acc>& total) {
  RowWalk walk(p, tile, 0);
  for (int64_t r = 0; r < tile.rows; ++r, ++walk) {
    const auto [head, token] = *walk;
    const int64_t row = (tile.batch * p.H_q + head) * p.T + token;
    Acc max = total.max[r], sum = total.sum[r], factor = 1;
    const Acc sink =
        p.sinks ? static_cast<const Acc*>(p.sinks)[head] * kLog2E<Acc> : kMinusInfinity<Acc>;
    if (sink > kMinusInfinity<Acc>) {
      const Acc base = std::max(max, sink);
      factor = std::exp2(max - base);
      sum = sum * factor + std::exp2(sink - base);
      max = base;
    }
    if (sum != 0) factor /= sum;  // else nothing was seen: out is zero already
    store_row(p.dtype, p.out, row * p.D_v, p.D_v, factor, total.out + r * padded(p.D_v));
    if (p.lse) static_cast<Acc*>(p.lse)[row] = (max + std::log2(sum)) / kLog2E<Acc>;
  }
  clear_upper_lanes();
}

}  // namespace
}  // namespace mqa::kernels::cpu
