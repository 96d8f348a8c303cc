// Gradients as products of float matrices by vector instructions.
#pragma once

#include "gradients.h"
#include "vector_engine.h"

namespace mqa::kernels::cpu {
namespace {

// Element (m, 16 t + i) of a left operand is data[m * row + t * tile + i * step].
template <class Acc>
struct LeftOperand {
  const Acc* data;
  int64_t row, tile, step;
};

// to[m][n] += sum_k left(m, k) right[k][n] for kRows rows, kVectors vectors, and k over tiles
// of 16.
template <int kRows, int kVectors, class Acc>
inline void add_block(KeyRange tiles, const LeftOperand<Acc>& left, const KeyTile* right,
                      int64_t column, Acc* to, int64_t stride) {
  Vector<Acc> sums[kRows][kVectors];
  for (int m = 0; m < kRows; ++m) {
    for (int v = 0; v < kVectors; ++v) sums[m][v] = load(to + m * stride + v * kLanes<Acc>);
  }
  for (int64_t t = tiles.begin; t < tiles.end; ++t) {
    const Acc* a = left.data + t * left.tile;
    const Acc* b = right[t].template row<Acc>(0) + column;
    const int64_t b_stride = right[t].stride / static_cast<int64_t>(sizeof(Acc));
    for (int64_t i = 0; i < kTileKeys; ++i, a += left.step, b += b_stride) {
      Vector<Acc> x[kVectors];
      for (int v = 0; v < kVectors; ++v) x[v] = load(b + v * kLanes<Acc>);
      for (int m = 0; m < kRows; ++m) {
        const Vector<Acc> y = broadcast(a[m * left.row]);
        for (int v = 0; v < kVectors; ++v) sums[m][v] = multiply_add(y, x[v], sums[m][v]);
      }
    }
  }
  for (int m = 0; m < kRows; ++m) {
    for (int v = 0; v < kVectors; ++v) store(to + m * stride + v * kLanes<Acc>, sums[m][v]);
  }
}

// The same for any number of rows and for `columns`, whole vectors.
template <class Acc>
void add_product(int64_t rows, int64_t columns, KeyRange tiles, const LeftOperand<Acc>& left,
                 const KeyTile* right, Acc* to, int64_t stride) {
  constexpr int kVectors = 4, kRows = kVectorRegisters / 2 / kVectors;
  const auto strip = [&](int64_t column, auto vectors) {
    const auto block = [&](int64_t m, auto count) {
      add_block<count, vectors>(tiles, {left.data + m * left.row, left.row, left.tile, left.step},
                                right, column, to + m * stride + column, stride);
    };
    int64_t m = 0;
    for (; m + kRows <= rows; m += kRows) block(m, std::integral_constant<int, kRows>());
    for (; m < rows; ++m) block(m, std::integral_constant<int, 1>());
  };
  int64_t n = 0;
  for (; n + kVectors * kLanes<Acc> <= columns; n += kVectors * kLanes<Acc>) {
    strip(n, std::integral_constant<int, kVectors>());
  }
  for (; n < columns; n += kLanes<Acc>) strip(n, std::integral_constant<int, 1>());
}

template <class A>
class VectorSums {
 public:
  using Acc = A;
  using Engine = VectorEngine<PlainProducts<Acc>, RowsInLanes>;
  static constexpr bool kExactWeights = true;
  static constexpr int64_t kPadding = 0;

  VectorSums(const BackwardParams& p, const RowTile& tile, const CacheGrads<Acc>& grads,
             Pieces& pieces)
      : p_(p), tile_(tile), grads_(grads) {
    rows_ = pieces.take<Acc>(kTileRows * width());
    grad_rows_ = pieces.take<Acc>(kTileRows * value_width());
    key_buffer_ = pieces.take<Acc>(kChunkKeys * width());
    grad_query_ = pieces.take<Acc>(kTileRows * width());
  }

  static int64_t query_size(const AttentionParams& p) {
    return cpu::query_size<PlainProducts<Acc>>(p);
  }
  static void pack_queries(const AttentionParams& p, const RowTile& tile, void* to) {
    cpu::pack_queries<PlainProducts<Acc>>(p, tile, /*few=*/false, to);
  }

  void pack() {
    gather_rows(p_, tile_, queries(p_), rows_, width());
    gather_rows(p_, tile_, grad_outs(p_), grad_rows_, value_width());
    for (int64_t t = 0; t < kTileRows / kTileKeys; ++t) {
      row_tiles_[t] = tile_of(rows_, t, width());
      grad_row_tiles_[t] = tile_of(grad_rows_, t, value_width());
    }
    std::fill_n(grad_query_, kTileRows * width(), Acc{0});
  }

  // Keys that are hidden from some rows may hold NaN or infinity, and 0 * NaN is NaN. A row that
  // sees one has no finite d_score anyway.
  void find_keys(const Work& work, const KeyTile* tiles) {
    chunk_ = chunk_start(work.keys);
    const KeyRange found = tiles_of(work.keys);
    for (int64_t t = found.begin; t < found.end; ++t) {
      key_tiles_[t] = finite(tiles[t]) ? tiles[t] : copy_finite(tiles[t], t);
    }
  }

  template <class Softmax>
  void add(const RowGroups& some, Engine& scores, Engine& grads, const Softmax& softmax) {
    if (some.seen.empty()) return;
    for (int64_t g = 0; g < some.count; ++g) {
      for (int64_t j = some.span.begin; j < some.span.end; ++j) {
        for (int lane = 0; lane < kGroupRows; lane += kLanes<Acc>) {
          Vector<Acc> weight, d_score;
          softmax(g, j, lane, weight, d_score);
          store(scores.scores(g) + j * kGroupRows + lane, weight);
          store(grads.scores(g) + j * kGroupRows + lane, d_score);
        }
      }
    }
    const Acc *weights = scores.scores(0), *d_scores = grads.scores(0);
    const int64_t group = scores.scores(1) - weights, first = some.seen.begin * kGroupRows;
    const int64_t keys = some.seen.end - some.seen.begin, slot = chunk_ + some.seen.begin;
    const KeyRange groups{0, some.count};
    if (grads_.value) {
      add_product<Acc>(keys, value_width(), groups, {weights + first, kGroupRows, group, 1},
                       grad_row_tiles_ + some.first, grads_.value + slot * grads_.value_stride,
                       grads_.value_stride);
    }
    if (grads_.key) {
      add_product<Acc>(keys, width(), groups, {d_scores + first, kGroupRows, group, 1},
                       row_tiles_ + some.first, grads_.key + slot * grads_.key_stride,
                       grads_.key_stride);
    }
    if (!p_.grad_query) return;
    const KeyRange tiles{some.span.begin / kTileKeys, some.span.end / kTileKeys};
    for (int64_t g = 0; g < some.count; ++g) {
      add_product<Acc>(kGroupRows, width(), tiles,
                       {d_scores + g * group, 1, kTileKeys * kGroupRows, kGroupRows}, key_tiles_,
                       grad_query_ + (some.first + g) * kGroupRows * width(), width());
    }
  }

  void finish_chunk() {}

  void finish() const {
    if (!p_.grad_query) return;
    RowWalk walk(p_, tile_, 0);
    for (int64_t r = 0; r < tile_.rows; ++r, ++walk) {
      const auto [head, token] = *walk;
      store_row(p_.dtype, p_.grad_query, ((tile_.batch * p_.H_q + head) * p_.T + token) * p_.D,
                p_.D, Acc{1}, grad_query_ + r * width());
    }
  }

 private:
  int64_t width() const { return padded(p_.D); }
  int64_t value_width() const { return padded(p_.D_v); }

  static KeyTile tile_of(const Acc* rows, int64_t t, int64_t stride) {
    return {rows + t * kTileKeys * stride, stride * static_cast<int64_t>(sizeof(Acc))};
  }

  bool finite(const KeyTile& tile) const {
    Vector<Acc> zeros = {};  // x * 0 is 0 for finite x, else NaN
    for (int64_t j = 0; j < kTileKeys; ++j) {
      const Acc* row = tile.row<Acc>(j);
      for (int64_t d = 0; d < width(); d += kLanes<Acc>) zeros += load(row + d) * Acc{0};
    }
    Acc sum = 0;
    for (int i = 0; i < kLanes<Acc>; ++i) sum += zeros[i];
    return sum == 0;
  }

  KeyTile copy_finite(const KeyTile& tile, int64_t t) const {
    Acc* to = key_buffer_ + t * kTileKeys * width();
    for (int64_t j = 0; j < kTileKeys; ++j) {
      const Acc* row = tile.row<Acc>(j);
      for (int64_t d = 0; d < width(); ++d) {
        to[j * width() + d] = row[d] - row[d] == 0 ? row[d] : Acc{0};
      }
    }
    return tile_of(key_buffer_, t, width());
  }

  const BackwardParams& p_;
  const RowTile& tile_;
  CacheGrads<Acc> grads_;
  Acc *rows_, *grad_rows_, *key_buffer_, *grad_query_;
  KeyTile row_tiles_[kTileRows / kTileKeys], grad_row_tiles_[kTileRows / kTileKeys];
  KeyTile key_tiles_[kChunkTiles];
  int64_t chunk_ = 0;
};

}  // namespace
}  // namespace mqa::kernels::cpu
