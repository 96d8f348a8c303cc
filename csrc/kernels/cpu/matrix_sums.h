// Gradients as products of bfloat16 matrices by AMX tiles, summed in float32.
//
// A left operand has the summed index in its rows, a right one has pairs of it side by side:
//   grad_value   p^T [key][row]        times pairs of rows of grad_out
//   grad_key     d_score^T [key][row]  times pairs of rows of query
//   grad_query^T key^T [column][key]   times pairs of keys of d_score, [pair of keys][row]
// So weights and the gradients of scores are rounded to bfloat16 where they are computed, with the
// rows in the lanes, and only the keys of a chunk have to be transposed.
#pragma once

#include "gradients.h"
#include "matrix_engine.h"

namespace mqa::kernels::cpu {
namespace {

constexpr int64_t kSumDepth = 32;                           // that one product sums over
constexpr int64_t kTilePairs = kSumDepth / 2 * kGroupRows;  // of one operand's tile, in pairs

typedef uint16_t Halves __attribute__((vector_size(kVectorBytes)));
using HalfLanes = std::make_integer_sequence<int, kVectorBytes / 2>;

// Rounded to nearest even: the first in the lower half of the vector.
inline Halves rounded(Vector<float> first, Vector<float> second) {
  return (Halves)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
}

// The same, lane by lane side by side.
template <int... i>
inline Halves rounded_pairs(Vector<float> first, Vector<float> second,
                            std::integer_sequence<int, i...>) {
  const Halves halves = rounded(first, second);
  return __builtin_shufflevector(halves, halves, (i % 2 * 16 + i / 2)...);
}

// The lower (0) or upper (1) halves of two vectors' lanes.
template <int kHalf, int... i>
inline Halves halves_of(Vector<uint32_t> first, Vector<uint32_t> second,
                        std::integer_sequence<int, i...>) {
  return __builtin_shufflevector((Halves)first, (Halves)second, (2 * i + kHalf)...);
}

inline Halves finite_or_zero(Halves x) { return (x & 0x7f80) == 0x7f80 ? Halves{} : x; }

inline void store(void* to, Halves x) { std::memcpy(to, &x, sizeof x); }

// to += left right for up to 2 x 2 tiles of 16 x 16. Tile (m, t) of the left operand lies at
// left + m * left_row + t * left_step, with n for the right one; sums have `stride` floats.
struct TileProduct {
  const uint32_t* left;
  int64_t left_row, left_step;
  const uint32_t* right;
  int64_t right_column, right_step;
  float* to;
  int64_t stride;

  template <int kRows, int kColumns>
  void add(int64_t m, int64_t n, KeyRange steps) const {
    const int64_t bytes = stride * static_cast<int64_t>(sizeof(float));
    float* corner = to + (m * stride + n) * kGroupRows;
    tile_load<0>(corner, bytes);
    if constexpr (kColumns == 2) tile_load<1>(corner + kGroupRows, bytes);
    if constexpr (kRows == 2) tile_load<2>(corner + kGroupRows * stride, bytes);
    if constexpr (kRows * kColumns == 4) tile_load<3>(corner + kGroupRows * (stride + 1), bytes);
    for (int64_t t = steps.begin; t < steps.end; ++t) {
      const uint32_t* a = left + m * left_row + t * left_step;
      const uint32_t* b = right + n * right_column + t * right_step;
      tile_load<4>(a, 64);
      tile_load<6>(b, 64);
      tile_multiply_add<0, 4, 6>();
      if constexpr (kColumns == 2) {
        tile_load<7>(b + right_column, 64);
        tile_multiply_add<1, 4, 7>();
      }
      if constexpr (kRows == 2) {
        tile_load<5>(a + left_row, 64);
        tile_multiply_add<2, 5, 6>();
        if constexpr (kColumns == 2) tile_multiply_add<3, 5, 7>();
      }
    }
    tile_store<0>(corner, bytes);
    if constexpr (kColumns == 2) tile_store<1>(corner + kGroupRows, bytes);
    if constexpr (kRows == 2) tile_store<2>(corner + kGroupRows * stride, bytes);
    if constexpr (kRows * kColumns == 4) tile_store<3>(corner + kGroupRows * (stride + 1), bytes);
  }

  // For tiles of rows and columns.
  void add(KeyRange rows, KeyRange columns, KeyRange steps) const {
    for (int64_t m = rows.begin; m < rows.end; m += 2) {
      for (int64_t n = columns.begin; n < columns.end; n += 2) {
        const bool two_rows = m + 1 < rows.end, two_columns = n + 1 < columns.end;
        if (two_rows) {
          two_columns ? add<2, 2>(m, n, steps) : add<2, 1>(m, n, steps);
        } else {
          two_columns ? add<1, 2>(m, n, steps) : add<1, 1>(m, n, steps);
        }
      }
    }
  }
};

class MatrixSums {
 public:
  using Acc = float;
  using Engine = MatrixEngine;
  static constexpr bool kExactWeights = false;
  static constexpr int64_t kPadding = kSumDepth;

  MatrixSums(const BackwardParams& p, const RowTile& tile, const CacheGrads<float>& grads,
             Pieces& pieces)
      : p_(p), tile_(tile), grads_(grads) {
    const int64_t widest = std::max(width(), value_width());
    rows_ = pieces.take<BFloat16Bits>(kTileRows * widest);
    query_pairs_ = pieces.take<uint32_t>(kTileRows / 2 * width());
    grad_out_pairs_ = pieces.take<uint32_t>(kTileRows / 2 * value_width());
    keys_ = pieces.take<uint32_t>(kChunkKeys / 2 * width());
    weights_ = pieces.take<uint32_t>(kChunkKeys * kTileRows / 2);
    d_scores_ = pieces.take<uint32_t>(kChunkKeys * kTileRows / 2);
    d_score_pairs_ = pieces.take<uint32_t>(kChunkKeys * kTileRows / 2);
    grad_query_ = pieces.take<float>(width() * kTileRows);
    grad_query_rows_ = pieces.take<float>(kGroupRows * width());
  }

  static int64_t query_size(const AttentionParams& p) {
    return cpu::query_size<PairProducts<BFloat16Bits>>(p);
  }
  static void pack_queries(const AttentionParams& p, const RowTile& tile, void* to) {
    pack_for_matrices(p, tile, to);
  }

  void pack() {
    pack_pairs(queries(p_), width(), query_pairs_);
    pack_pairs(grad_outs(p_), value_width(), grad_out_pairs_);
    std::fill_n(grad_query_, width() * kTileRows, 0.f);
  }

  void find_keys(const Work& work, const KeyTile* tiles) {
    chunk_ = chunk_start(work.keys);
    blocks_ = whole_tiles(tiles_of(work.keys), 2);
    blocks_ = {blocks_.begin / 2, blocks_.end / 2};
    for (int64_t b = blocks_.begin; b < blocks_.end; ++b) {
      for (int64_t column = 0; column < width(); column += kSumDepth) {
        transpose_keys(tiles + 2 * b, column, b);
      }
    }
  }

  template <class Softmax>
  void add(const RowGroups& some, const Engine&, const Engine&, const Softmax& softmax) {
    const int64_t rows = some.first / 2;  // whole pairs of groups
    uint32_t* weights = weights_ + rows * kChunkKeys * kGroupRows;
    uint32_t* d_scores = d_scores_ + rows * kChunkKeys * kGroupRows;
    uint32_t* pairs[2] = {d_score_pairs_ + some.first * kChunkKeys / 2 * kGroupRows,
                          d_score_pairs_ + (some.first + 1) * kChunkKeys / 2 * kGroupRows};
    const KeyRange seen = some.seen.empty() ? KeyRange{0, 0} : some.span;
    for (int64_t j = blocks_.begin * kSumDepth; j < blocks_.end * kSumDepth; j += 2) {
      Vector<float> w[2][2] = {}, d[2][2] = {};  // [group][key]
      if (j >= seen.begin && j < seen.end) {
        for (int64_t g = 0; g < some.count; ++g) {
          for (int64_t k = 0; k < 2; ++k) softmax(g, j + k, 0, w[g][k], d[g][k]);
        }
      }
      for (int64_t k = 0; k < 2; ++k) {
        store(weights + (j + k) * kGroupRows, rounded(w[0][k], w[1][k]));
        store(d_scores + (j + k) * kGroupRows, rounded(d[0][k], d[1][k]));
      }
      for (int64_t g = 0; g < some.count; ++g) {
        store(pairs[g] + j / 2 * kGroupRows, rounded_pairs(d[g][0], d[g][1], HalfLanes()));
      }
    }
  }

  void finish_chunk() const {
    const int64_t groups = (tile_.rows + kGroupRows - 1) / kGroupRows;
    const KeyRange rows{0, (groups + 1) / 2};  // that a product sums over at once
    const KeyRange keys{2 * blocks_.begin, 2 * blocks_.end};
    constexpr int64_t kKeyTile = kTileKeys * kGroupRows, kRowStep = kChunkKeys * kGroupRows;
    if (grads_.value) {
      TileProduct{weights_,
                  kKeyTile,
                  kRowStep,
                  grad_out_pairs_,
                  kTilePairs,
                  value_width() * kGroupRows,
                  grads_.value + chunk_ * grads_.value_stride,
                  grads_.value_stride}
          .add(keys, {0, value_width() / kGroupRows}, rows);
    }
    if (grads_.key) {
      TileProduct{d_scores_,
                  kKeyTile,
                  kRowStep,
                  query_pairs_,
                  kTilePairs,
                  width() * kGroupRows,
                  grads_.key + chunk_ * grads_.key_stride,
                  grads_.key_stride}
          .add(keys, {0, width() / kGroupRows}, rows);
    }
    if (!p_.grad_query) return;
    TileProduct{keys_,        kTilePairs, width() * kGroupRows, d_score_pairs_,
                kRowStep / 2, kTilePairs, grad_query_,          kTileRows}
        .add({0, width() / kGroupRows}, {0, groups}, blocks_);
  }

  void finish() const {
    if (!p_.grad_query) return;
    RowWalk walk(p_, tile_, 0);
    for (int64_t r = 0; r < tile_.rows; ++r, ++walk) {
      if (r % kGroupRows == 0) transpose_group(r / kGroupRows, grad_query_rows_);
      const auto [head, token] = *walk;
      store_row(p_.dtype, p_.grad_query, ((tile_.batch * p_.H_q + head) * p_.T + token) * p_.D,
                p_.D, 1.f, grad_query_rows_ + r % kGroupRows * width());
    }
  }

 private:
  // In whole tiles of both operands.
  int64_t width() const { return elements<PairProducts<BFloat16Bits>>(p_.D) * 2; }
  int64_t value_width() const { return elements<PairProducts<BFloat16Bits>>(p_.D_v) * 2; }

  // [32 rows][16 columns][pair of rows][column]
  void pack_pairs(const RowSource& source, int64_t width, uint32_t* to) {
    gather_rows(p_, tile_, source, rows_, width);
    for (int64_t r = 0; r < whole_tiles({0, tile_.rows}, kSumDepth).end; r += 2) {
      const BFloat16Bits* row = rows_ + r * width;
      uint32_t* block = to + r / kSumDepth * width * kGroupRows + r % kSumDepth / 2 * kGroupRows;
      for (int64_t d = 0; d < width; d += kGroupRows) {
        kernels::store(block + d / kGroupRows * kTilePairs, side_by_side(row + d, row + width + d));
      }
    }
  }

  // 32 keys' columns [column, column + 32) as [16 columns][column][key]. Keys that are hidden from
  // some rows may hold NaN or infinity, and 0 * NaN is NaN. A row that sees one has no finite
  // d_score anyway.
  void transpose_keys(const KeyTile* tiles, int64_t column, int64_t block) {
    Vector<uint32_t> x[2][kTileKeys];
    for (int t = 0; t < 2; ++t) {
      for (int64_t j = 0; j < kTileKeys; ++j) {
        x[t][j] = load(reinterpret_cast<const uint32_t*>(tiles[t].row<BFloat16Bits>(j) + column));
      }
      transpose(x[t]);  // to [pair of columns][key]
    }
    uint32_t* to = keys_ + (block * width() + column) * kGroupRows;
    for (int64_t i = 0; i < kTileKeys; ++i) {
      const Halves even = halves_of<0>(x[0][i], x[1][i], HalfLanes());
      const Halves odd = halves_of<1>(x[0][i], x[1][i], HalfLanes());
      store(to + 2 * i * kGroupRows, finite_or_zero(even));
      store(to + (2 * i + 1) * kGroupRows, finite_or_zero(odd));
    }
  }

  // Sixteen rows of grad_query^T.
  void transpose_group(int64_t group, float* rows) const {
    for (int64_t d = 0; d < width(); d += kGroupRows) {
      Vector<float> x[kGroupRows];
      for (int i = 0; i < kGroupRows; ++i) {
        x[i] = load(grad_query_ + (d + i) * kTileRows + group * kGroupRows);
      }
      transpose(x);
      for (int i = 0; i < kGroupRows; ++i) kernels::store(rows + i * width() + d, x[i]);
    }
  }

  const BackwardParams& p_;
  const RowTile& tile_;
  CacheGrads<float> grads_;
  BFloat16Bits* rows_;
  uint32_t *query_pairs_, *grad_out_pairs_, *keys_;
  uint32_t *weights_, *d_scores_, *d_score_pairs_;
  float *grad_query_, *grad_query_rows_;
  int64_t chunk_ = 0;
  KeyRange blocks_{0, 0};  // of 32 keys, counted from the chunk's start
};

void differentiate_by_matrices(const BackwardParams& p, const RowTile& tile,
                               const CacheGrads<float>& grads, void* scratch) {
  const TileRegisters registers;
  differentiate<MatrixSums>(p, tile, grads, scratch);
}

}  // namespace
}  // namespace mqa::kernels::cpu
