// The two matrix products of a warp's rows and a tile of keys: scores, and weighted values.
//
// All accumulators have the layout of mma.m16n8k16's: element i of score tile n and row group m is
// row 16 m + 8 (i / 2) + lane / 4 and key 8 n + 2 (lane % 4) + i % 2. Tensor cores multiply 16-bit
// numbers; float32 is multiplied by fused multiply-adds in the same layout.
#pragma once

#include "widen.cuh"

namespace mqa::kernels::cuda {

// Column of the value that element i of accumulator tile n is for, less the warp's first one.
// Values that are not 16-bit come as four neighbouring columns in a lane.
template <class Stored>
DEVICE int value_column(int n, int i) {
  const int lane = lane_index() & 3;
  if constexpr (sizeof(Stored) == 2) return 8 * n + 2 * lane + i;
  return 16 * (n / 2) + 4 * lane + 2 * i + n % 2;
}

// 16 columns of 16 query rows as the left operand of a product.
template <class Tile>
DEVICE void query_operand(int queries, int first_row, int step, uint32_t (&a)[4]) {
  constexpr int kBytes = Tile::kQueryRowBytes;
  const int at = queries + chunk_at<kBytes>(first_row + (lane_index() & 15), lane_index() >> 4);
  ldmatrix_x4(a, smem_address(dynamic_smem()) + further<kBytes>(at, 2 * step));
}

// scores = the rows from first_row on of the queries at `queries` times the keys at `keys`
template <class Tile>
DEVICE void multiply_keys(int queries, int first_row, int keys, typename Tile::Scores& scores) {
  using Query = typename Tile::Query;
  using Stored = typename Tile::Stored;
  constexpr int kSteps = Tile::kD / 16, kBytes = Tile::kKeyRowBytes;
  const int lane = lane_index();
#pragma unroll
  for (int m = 0; m < Tile::kRowGroups; ++m)
#pragma unroll
    for (int n = 0; n < Tile::kKeyTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[m][n][i] = 0;

  if constexpr (sizeof(Stored) == 2) {
    const int at = keys + chunk_at<kBytes>((lane >> 4) * 8 + (lane & 7), lane >> 3 & 1);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t q[Tile::kRowGroups][4];
#pragma unroll
      for (int m = 0; m < Tile::kRowGroups; ++m) {
        query_operand<Tile>(queries, first_row + 16 * m, step, q[m]);
      }
#pragma unroll
      for (int n = 0; n < Tile::kKeyTiles; n += 2) {
        uint32_t k[4];
        ldmatrix_x4(k,
                    smem_address(dynamic_smem()) + further<kBytes>(at, 2 * step) + 8 * n * kBytes);
#pragma unroll
        for (int m = 0; m < Tile::kRowGroups; ++m) {
          mma<Query>(scores[m][n], q[m], k[0], k[1]);
          mma<Query>(scores[m][n + 1], q[m], k[2], k[3]);
        }
      }
    }
  } else if constexpr (!Tile::kIsFloat) {
    const int at = keys + chunk_at<kBytes>(lane >> 2, lane & 3);
#pragma unroll
    for (int block = 0; block < kSteps / 4; ++block) {  // 64 columns: 16 codes for each lane
      uint32_t codes[Tile::kKeyTiles][4];
#pragma unroll
      for (int n = 0; n < Tile::kKeyTiles; ++n) {
        const Words4 x =
            smem_load<Words4>(dynamic_smem() + further<kBytes>(at, 4 * block) + 8 * n * kBytes);
        codes[n][0] = x.x, codes[n][1] = x.y, codes[n][2] = x.z, codes[n][3] = x.w;
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        uint32_t q[Tile::kRowGroups][4];
#pragma unroll
        for (int m = 0; m < Tile::kRowGroups; ++m) {
          query_operand<Tile>(queries, first_row + 16 * m, 4 * block + j, q[m]);
        }
#pragma unroll
        for (int n = 0; n < Tile::kKeyTiles; ++n) {
          const uint32_t k0 = widen<Query, Stored, 0, 1>(codes[n][j]);
          const uint32_t k1 = widen<Query, Stored, 2, 3>(codes[n][j]);
#pragma unroll
          for (int m = 0; m < Tile::kRowGroups; ++m) mma<Query>(scores[m][n], q[m], k0, k1);
        }
      }
    }
  } else {
    constexpr int kChain =
        64;  // columns summed up before they join the rest: shorter sums err less
    for (int first = 0; first < Tile::kD; first += kChain) {
      float sums[Tile::kRowGroups][Tile::kKeyTiles][4] = {};
#pragma unroll 4
      for (int column = first; column < first + kChain; column += 4) {
        float q[Tile::kRowGroups][2][4];
#pragma unroll
        for (int m = 0; m < Tile::kRowGroups; ++m)
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const int row = first_row + 16 * m + 8 * j + (lane >> 2);
            load_four<float>(queries + chunk_at<Tile::kQueryRowBytes>(row, column / 4), q[m][j]);
          }
#pragma unroll
        for (int n = 0; n < Tile::kKeyTiles; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int key = 8 * n + 2 * (lane & 3) + i, byte = column * int{sizeof(Stored)};
            float k[4];
            load_four<Stored>(keys + chunk_at<kBytes>(key, byte / 16) + byte % 16, k);
#pragma unroll
            for (int m = 0; m < Tile::kRowGroups; ++m)
#pragma unroll
              for (int j = 0; j < 2; ++j)
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                  sums[m][n][2 * j + i] = fmaf(q[m][j][c], k[c], sums[m][n][2 * j + i]);
                }
          }
      }
#pragma unroll
      for (int m = 0; m < Tile::kRowGroups; ++m)
#pragma unroll
        for (int n = 0; n < Tile::kKeyTiles; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) scores[m][n][i] += sums[m][n][i];
    }
  }
}

// Calls body(n, b0, b1) with the right operands for 16 keys from `key` on: tile n of eight columns.
template <class Tile, class Body>
DEVICE void for_each_value_operand(int values, int first_column, int key, const Body& body) {
  using Query = typename Tile::Query;
  using Stored = typename Tile::Stored;
  constexpr int kBytes = Tile::kValueRowBytes, kChunkColumns = 16 / int{sizeof(Stored)};
  const int first = first_column / kChunkColumns + (lane_index() >> 4);
  const int at = values + chunk_at<kBytes>(lane_index() & 15, first) + key * kBytes;
#pragma unroll
  for (int column = 0; column < Tile::kColumns; column += 2 * kChunkColumns) {
    uint32_t v[4];
    ldmatrix_x4_trans(v,
                      smem_address(dynamic_smem()) + further<kBytes>(at, column / kChunkColumns));
    const int n = column / 8;
    if constexpr (sizeof(Stored) == 2) {
      body(n, v[0], v[1]);
      body(n + 1, v[2], v[3]);
    } else {  // pairs of codes side by side: even columns, then odd ones
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t low = v[2 * half], high = v[2 * half + 1];
        body(n + 2 * half, widen<Query, Stored, 0, 2>(low), widen<Query, Stored, 0, 2>(high));
        body(n + 2 * half + 1, widen<Query, Stored, 1, 3>(low), widen<Query, Stored, 1, 3>(high));
      }
    }
  }
}

// For values that are not finite, where some rows have the weight 0 because they do not see them.
template <class Query>
struct NonFinite {
  static constexpr bool kIsF16 = std::is_same_v<Query, f16>;
  static constexpr uint32_t kExponent = kIsF16 ? 0x7c00 : 0x7f80,
                            kLowest = kIsF16 ? 0x0400 : 0x0080;
  // 1, 64 and 4096: sums over 16 keys tell which of +inf, -inf and NaN there are.
  static constexpr uint32_t kOne = kIsF16 ? 0x3c00 : 0x3f80, kPlus = kOne,
                            kMinus = kIsF16 ? 0x5400 : 0x4280, kNaN = kIsF16 ? 0x6c00 : 0x4580;

  // The sign bits of those of two numbers that are not finite.
  DEVICE static uint32_t signs(uint32_t pair) {
    return ((pair & kExponent * 0x10001u) + kLowest * 0x10001u) & 0x80008000u;
  }
  DEVICE static uint32_t without(uint32_t pair) { return pair & ~((signs(pair) >> 15) * 0xffffu); }
  DEVICE static uint32_t marks(uint32_t pair) {
    return mark(pair & 0xffff) | mark(pair >> 16) << 16;
  }
  DEVICE static uint32_t mark(uint32_t x) {
    const uint32_t magnitude = x & 0x7fff;
    return magnitude < kExponent ? 0 : magnitude > kExponent ? kNaN : x >> 15 ? kMinus : kPlus;
  }
  DEVICE static uint32_t ones(float low, float high) {
    return (low != 0 ? kOne : 0) | (high != 0 ? kOne : 0) << 16;
  }
  // What a sum of marks adds to the result.
  DEVICE static float of_marks(float sum) {
    const int marks = static_cast<int>(sum);
    const bool minus = (marks & 4095) >= 64, plus = (marks & 63) != 0;
    if (marks >= 4096 || (plus && minus)) return NAN;
    return plus ? INFINITY : minus ? -INFINITY : 0;
  }
  // out += the non-finite ones of 16 values that have weights other than 0.
  DEVICE static void add(const float (&first)[4], const float (&second)[4], uint32_t v0,
                         uint32_t v1, float (&out)[4]) {
    const uint32_t sees[4] = {ones(first[0], first[1]), ones(first[2], first[3]),
                              ones(second[0], second[1]), ones(second[2], second[3])};
    float sums[4] = {};
    mma<Query>(sums, sees, marks(v0), marks(v1));
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] += of_marks(sums[i]);
  }
};

// out += weights times the values at `values`. kHidesKeys: some weights may be 0 because their rows
// do not see the key; its value then may not spoil them, whatever it is.
template <bool kHidesKeys, class Tile>
DEVICE void multiply_values(const typename Tile::Scores& weights, int values, int first_column,
                            typename Tile::Out& out) {
  using Query = typename Tile::Query;
  using Stored = typename Tile::Stored;
  if constexpr (!Tile::kIsFloat) {
    using Special = NonFinite<Query>;
    constexpr bool kCareful = kHidesKeys && !std::is_same_v<Stored, int8_t>;
#pragma unroll
    for (int step = 0; step < Tile::kKeys / 16; ++step) {
      // Accumulators of two neighbouring tiles of scores are one left operand.
      uint32_t p[Tile::kRowGroups][4];
#pragma unroll
      for (int m = 0; m < Tile::kRowGroups; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* pair = weights[m][2 * step + i / 2] + i % 2 * 2;
          p[m][i] = pack<Query>(pair[0], pair[1]);
        }
      for_each_value_operand<Tile>(
          values, first_column, 16 * step, [&](int n, uint32_t v0, uint32_t v1) {
            if constexpr (kCareful) {
              if (vote_any((Special::signs(v0) | Special::signs(v1)) != 0)) {
#pragma unroll
                for (int m = 0; m < Tile::kRowGroups; ++m) {
                  Special::add(weights[m][2 * step], weights[m][2 * step + 1], v0, v1, out[m][n]);
                }
                v0 = Special::without(v0);
                v1 = Special::without(v1);
              }
            }
#pragma unroll
            for (int m = 0; m < Tile::kRowGroups; ++m) mma<Query>(out[m][n], p[m], v0, v1);
          });
    }
  } else {
    const int lane = lane_index();
#pragma unroll
    for (int tile = 0; tile < Tile::kKeyTiles; ++tile) {
#pragma unroll 1
      for (int pair = 0; pair < 4; ++pair) {  // the lane of four that has these keys' weights
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float p[Tile::kRowGroups][2];
#pragma unroll
          for (int m = 0; m < Tile::kRowGroups; ++m)
#pragma unroll
            for (int j = 0; j < 2; ++j)
              p[m][j] = shfl(weights[m][tile][2 * j + i], (lane & ~3) | pair);
#pragma unroll
          for (int n = 0; n < Tile::kColumns / 8; n += 2) {
            const int column = first_column + 8 * n + 4 * (lane & 3);
            const int byte = column * int{sizeof(Stored)};
            float v[4];
            load_four<Stored>(
                values + chunk_at<Tile::kValueRowBytes>(8 * tile + 2 * pair + i, byte / 16) +
                    byte % 16,
                v);
#pragma unroll
            for (int m = 0; m < Tile::kRowGroups; ++m)
#pragma unroll
              for (int j = 0; j < 2; ++j)
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                  float& sum = out[m][n + c % 2][2 * j + c / 2];
                  const float more = fmaf(p[m][j], v[c], sum);
                  sum = kHidesKeys && p[m][j] == 0 ? sum : more;
                }
          }
        }
      }
    }
  }
}

}  // namespace mqa::kernels::cuda
