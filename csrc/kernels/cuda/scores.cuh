// What happens to scores between the two products: options, visibility, softmax.
#pragma once

#include "../visibility.h"
#include "loads.cuh"
#include "partial.cuh"
#include "widen.cuh"

namespace mqa::kernels::cuda {

DEVICE float mask_value(const Mask& mask, int64_t i) {
  switch (mask.dtype) {
    case DType::kFloat32:
      return load<float>(static_cast<const float*>(mask.data) + i);
    case DType::kBFloat16:
      return to_float(load<bf16>(static_cast<const bf16*>(mask.data) + i));
    case DType::kFloat16:
      return to_float(load<f16>(static_cast<const f16*>(mask.data) + i));
    default:
      return load<uint8_t>(static_cast<const uint8_t*>(mask.data) + i) ? 0 : -INFINITY;
  }
}

// Of a lane's two keys in tile n of eight.
DEVICE float2 key_scales(int scales, int n) {
  return smem_load<float2>(dynamic_smem() + scales + (8 * n + 2 * (lane_index() & 3)) * 4);
}

// The rows that a lane has scores of: `first` + 16 m + 8 j.
template <class Tile>
struct LaneRows {
  const AttentionParams& p;
  int batch, kv_head, first, seq_len;
  Softmax softmax[Tile::kRowGroups][2];
  float unit[Tile::kRowGroups][2];  // of weights, where the tile has units

  // The first row's number, of those of a warp from first_row on.
  DEVICE LaneRows(const AttentionParams& params, int batch_row, int head, int first_row, int len)
      : p(params),
        batch(batch_row),
        kv_head(head),
        first(first_row + (lane_index() >> 2)),
        seq_len(len) {}

  DEVICE int row(int m, int j) const { return first + 16 * m + 8 * j; }
  DEVICE RowPlace place(int m, int j) const { return place_of_row(p, kv_head, row(m, j)); }
};

// scores *= scale, and each key's own scale at `scales`.
template <class Tile>
DEVICE void scale_scores(float scale, int scales, typename Tile::Scores& scores) {
#pragma unroll
  for (int n = 0; n < Tile::kKeyTiles; ++n) {
    float of_key[2] = {scale, scale};
    if constexpr (kIsQuantised<typename Tile::Stored>) {
      const float2 x = key_scales(scales, n);
      of_key[0] *= x.x, of_key[1] *= x.y;
    }
#pragma unroll
    for (int m = 0; m < Tile::kRowGroups; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[m][n][i] *= of_key[i & 1];
  }
}

// Gives hidden keys the score -inf. Key n, i of a lane is number first_key + 8 n + i.
template <class Tile>
DEVICE void hide(const LaneRows<Tile>& rows, int first_key, typename Tile::Scores& scores) {
#pragma unroll
  for (int m = 0; m < Tile::kRowGroups; ++m)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const KeyRange seen = visible_of(rows.p, rows.seq_len, rows.place(m, j).token);
      const int begin = static_cast<int>(seen.begin) - first_key;
      const int end = static_cast<int>(seen.end) - first_key;
#pragma unroll
      for (int n = 0; n < Tile::kKeyTiles; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int key = 8 * n + i;
          if (key < begin || key >= end) scores[m][n][2 * j + i] = -INFINITY;
        }
    }
}

// Softcap, ALiBi and attn_mask, of scores in base 2 and to such.
template <class Tile>
DEVICE void apply_options(const LaneRows<Tile>& rows, int end_row, int first_key,
                          typename Tile::Scores& scores) {
  const AttentionParams& p = rows.p;
  const float cap = static_cast<float>(p.softcap) * kLog2E;
#pragma unroll
  for (int m = 0; m < Tile::kRowGroups; ++m)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (rows.row(m, j) >= end_row) continue;
      const auto [head, token] = rows.place(m, j);
      const KeyRange seen = visible_of(p, rows.seq_len, token);
      const int diagonal = static_cast<int>(diagonal_at(p, rows.seq_len, token));
      float slope = 0;
      if (p.alibi_slopes) {
        slope =
            kLog2E * load<float>(static_cast<const float*>(p.alibi_slopes) +
                                 rows.batch * p.alibi_batch_stride + head * p.alibi_head_stride);
      }
      const int64_t mask_row = rows.batch * p.mask.batch_stride + head * p.mask.head_stride +
                               token * p.mask.query_stride;
#pragma unroll
      for (int n = 0; n < Tile::kKeyTiles; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = scores[m][n][2 * j + i];
          const int key = first_key + 8 * n + i;
          if (cap > 0) score = cap * tanhf(score / cap);
          score -= slope * fabsf(static_cast<float>(diagonal - key));
          if (p.mask.data && key >= seen.begin && key < seen.end) {
            const float added = mask_value(p.mask, mask_row + key * p.mask.key_stride);
            score = added == -INFINITY ? added : score + added * kLog2E;
          }
        }
    }
}

// A row's weighted values times a factor.
template <class Tile>
DEVICE void scale_row(int m, int j, float factor, typename Tile::Out& out) {
#pragma unroll
  for (int n = 0; n < Tile::kColumns / 8; ++n) {
    out[m][n][2 * j] *= factor;
    out[m][n][2 * j + 1] *= factor;
  }
}

// Scores to weights 2^(score - max), the rows' sums and what was summed up before to the new
// maximum.
template <class Tile>
DEVICE void to_weights(LaneRows<Tile>& rows, typename Tile::Scores& scores,
                       typename Tile::Out& out) {
#pragma unroll
  for (int m = 0; m < Tile::kRowGroups; ++m)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      auto& [row_max, row_sum] = rows.softmax[m][j];
      float max = row_max;
#pragma unroll
      for (int n = 0; n < Tile::kKeyTiles; ++n) {
        max = fmaxf(max, fmaxf(scores[m][n][2 * j], scores[m][n][2 * j + 1]));
      }
      max = fmaxf(max, shfl_xor(max, 1));
      max = fmaxf(max, shfl_xor(max, 2));
      const float base = base_of(max);
      if (vote_any(max > row_max)) {
        const float keep = ex2(row_max - base);  // exactly 1 for a row whose maximum stays
        row_sum *= keep;
        scale_row<Tile>(m, j, keep, out);
        row_max = max;
      }
#pragma unroll
      for (int n = 0; n < Tile::kKeyTiles; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = scores[m][n][2 * j + i];
          score = ex2(score - base);
          row_sum += score;
        }
    }
}

// weights *= the values' own scales at `scales`. The weight 0 stays, whatever the scale is. With
// units the weights are less than 2 of the row's unit: a power of two, as large as the largest
// scale.
template <class Tile>
DEVICE void scale_weights(LaneRows<Tile>& rows, int scales, typename Tile::Scores& weights,
                          typename Tile::Out& out) {
  constexpr float kFactor = kCodeFactor<typename Tile::Query, typename Tile::Stored>;
  float of_value[Tile::kKeyTiles][2];
#pragma unroll
  for (int n = 0; n < Tile::kKeyTiles; ++n) {
    const float2 x = key_scales(scales, n);
    of_value[n][0] = kFactor * x.x, of_value[n][1] = kFactor * x.y;
  }
#pragma unroll
  for (int m = 0; m < Tile::kRowGroups; ++m)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float units = 1;  // in 1
      if constexpr (Tile::kHasUnits) {
        float& unit = rows.unit[m][j];
        float largest = 0;
#pragma unroll
        for (int n = 0; n < Tile::kKeyTiles; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            if (weights[m][n][2 * j + i] != 0) largest = fmaxf(largest, fabsf(of_value[n][i]));
          }
        largest = fmaxf(largest, shfl_xor(largest, 1));
        largest = fmaxf(largest, shfl_xor(largest, 2));
        const float power = as_float(as_bits(largest) & 0x7f800000u);
        if (vote_any(power > unit)) {
          const float next = fmaxf(power, unit);
          if (next > 0) scale_row<Tile>(m, j, unit / next, out);
          unit = next;
        }
        units = unit > 0 ? 1 / unit : 0;
      }
#pragma unroll
      for (int n = 0; n < Tile::kKeyTiles; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& weight = weights[m][n][2 * j + i];
          weight = weight == 0 ? 0 : weight * (of_value[n][i] * units);
        }
    }
}

}  // namespace mqa::kernels::cuda
