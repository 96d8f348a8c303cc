// Products of bfloat16 queries, keys and values by AMX tiles, summed in float32.
//
// Scores are K Q^T: the keys' rows are the left operand as the cache has them, the packed queries
// the right one. The weights are transposed in registers to become the left operand of the second
// product, the values of two keys lie side by side in its right one. Each element of a product is
// one chain, whatever the number of rows.
#pragma once

#include "amx.h"
#include "vector_engine.h"

namespace mqa::kernels::cpu {
namespace {

class MatrixEngine {
 public:
  using Acc = float;
  using Layout = RowsInLanes;
  static constexpr int64_t kGroups = 2;
  static constexpr int64_t kSpanKeys = 32;  // that one product sums over

  MatrixEngine(const AttentionParams& p, const RowTile& tile, KeyRange keys, const void* query,
               void* scratch)
      : p_(p), tile_(tile), keys_(keys), query_(static_cast<const uint32_t*>(query)) {
    Pieces pieces(scratch);
    key_buffer_ = pieces.take<BFloat16Bits>(kChunkKeys * key_width());
    value_buffer_ = pieces.take<BFloat16Bits>(kChunkKeys * value_width());
    values_ = pieces.take<uint32_t>(kChunkKeys / 2 * value_width());
    scores_ = pieces.take<float>(kGroups * kGroupScores);
    weights_ = pieces.take<uint32_t>(kGroups * kBlocks * kBlockPairs);
    spare_ = {pieces.take<float>(kGroupRows * value_width()), pieces.take<float>(kGroupRows),
              pieces.take<float>(kGroupRows)};
    end_ = pieces.next();
  }

  static int64_t scratch_size(const AttentionParams& p) {
    const RowTile none{};
    return MatrixEngine(p, none, {0, 0}, nullptr, nullptr).end_;  // of pieces that begin at 0
  }

  void find_keys() {
    CacheTiles<BFloat16Bits>(p_, tile_, p_.key, p_.D, key_width(), key_buffer_)
        .find(keys_, nullptr, key_tiles_);
    key_scales_ = find_scales(p_, tile_, p_.key, keys_, nullptr, key_scale_buffer_);
    // Products take tiles in pairs: the scores of one that is not there will be hidden.
    const KeyRange found = tiles();
    if (found.begin % 2) key_tiles_[found.begin - 1] = key_tiles_[found.begin];
    if (found.end % 2) key_tiles_[found.end] = key_tiles_[found.end - 1];
  }

  void find_values(const bool* used) {
    KeyTile rows[kChunkTiles];
    CacheTiles<BFloat16Bits>(p_, tile_, p_.value, p_.D_v, value_width(), value_buffer_)
        .find(keys_, used, rows);
    value_scales_ = find_scales(p_, tile_, p_.value, keys_, used, value_scale_buffer_);
    const KeyRange found = tiles();
    for (int64_t t = found.begin; t < found.end; ++t) interleave(t, rows[t]);
    if (found.begin % 2) clear_values(found.begin - 1);
    if (found.end % 2) clear_values(found.end);
  }

  float* scores(int64_t group) { return scores_ + group * kGroupScores; }

  const float* key_scales() const { return key_scales_; }

  const Partial<float>& spare() const { return spare_; }

  void score(const RowGroups& some) {
    for (int64_t t = some.span.begin / kTileKeys; t < some.span.end / kTileKeys; t += 2) {
      some.count == 2 ? score_tiles<2>(some.first, t) : score_tiles<1>(some.first, t);
    }
  }

  void weigh(const RowGroups& some, float scale, const Partial<float>& partial) {
    for (int64_t g = 0; g < some.count; ++g) {
      float* pairs = scores(g);
      softmax<Layout, /*kExact=*/false, 2>(
          kGroupRows, some.span, scale, pairs, partial.max + g * kGroupRows,
          partial.sum + g * kGroupRows, [&](int64_t, int64_t j, const Vector<float>* w) {
            store_pairs(pairs + j / 2 * kGroupRows,
                        value_scales_
                            ? bfloat16_pairs(w[0] * value_scales_[j], w[1] * value_scales_[j + 1])
                            : bfloat16_pairs(w[0], w[1]));
          });
      for (int64_t b = some.span.begin / kSpanKeys; b < some.span.end / kSpanKeys; ++b) {
        transpose_block(pairs + b * kBlockPairs, weights(g, b));
      }
    }
    const KeyRange blocks{some.span.begin / kSpanKeys, some.span.end / kSpanKeys};
    const int64_t columns = value_width() / kGroupRows;
    int64_t c = 0;
    if (some.count == 2) {
      for (; c + 2 <= columns; c += 2) weigh_tiles<2, 2>(blocks, c, partial.out);
      for (; c < columns; ++c) weigh_tiles<2, 1>(blocks, c, partial.out);
    } else {
      for (; c + 2 <= columns; c += 2) weigh_tiles<1, 2>(blocks, c, partial.out);
      for (; c < columns; ++c) weigh_tiles<1, 1>(blocks, c, partial.out);
    }
  }

 private:
  static constexpr int64_t kGroupScores = kChunkKeys * kGroupRows;
  static constexpr int64_t kBlockPairs = kSpanKeys / 2 * kGroupRows;  // a tile of pairs
  static constexpr int64_t kBlocks = kChunkKeys / kSpanKeys;
  static constexpr int64_t kTileBytes = 64;  // of a packed tile's row

  int64_t key_width() const { return elements<PairProducts>(p_.D) * 2; }
  int64_t value_width() const { return padded(p_.D_v); }

  // Those that hold some of the keys, counted from the start of the chunk.
  KeyRange tiles() const {
    const int64_t chunk = keys_.begin / kChunkKeys * kChunkKeys;
    const KeyRange keys = whole_tiles({keys_.begin - chunk, keys_.end - chunk}, kTileKeys);
    return {keys.begin / kTileKeys, keys.end / kTileKeys};
  }

  uint32_t* weights(int64_t group, int64_t block) {
    return weights_ + (group * kBlocks + block) * kBlockPairs;
  }
  // Of 32 keys and 16 columns: [pair of keys][column].
  uint32_t* values(int64_t block, int64_t column) {
    return values_ + (block * (value_width() / kGroupRows) + column) * kBlockPairs;
  }

  static void store_pairs(void* to, Vector<uint32_t> pairs) {
    std::memcpy(to, &pairs, sizeof pairs);
  }

  void interleave(int64_t t, const KeyTile& rows) {
    for (int64_t s = 0; s < kTileKeys / 2; ++s) {
      const BFloat16Bits* a = rows.row<BFloat16Bits>(2 * s);
      const BFloat16Bits* b = rows.row<BFloat16Bits>(2 * s + 1);
      const int64_t pair = (t % 2 * (kTileKeys / 2) + s) * kGroupRows;
      for (int64_t c = 0; c < value_width() / kGroupRows; ++c) {
        HalfVector first, second;
        std::memcpy(&first, a + c * kGroupRows, sizeof first);
        std::memcpy(&second, b + c * kGroupRows, sizeof second);
        store_pairs(values(t / 2, c) + pair, __builtin_convertvector(first, Vector<uint32_t>) |
                                                 __builtin_convertvector(second, Vector<uint32_t>)
                                                     << 16);
      }
    }
  }

  void clear_values(int64_t t) {
    for (int64_t c = 0; c < value_width() / kGroupRows; ++c) {
      std::fill_n(values(t / 2, c) + t % 2 * (kBlockPairs / 2), kBlockPairs / 2, 0);
    }
  }

  // [pair of keys][row] to [row][pair of keys].
  static void transpose_block(const float* pairs, uint32_t* to) {
    Vector<float> x[kGroupRows];
    for (int i = 0; i < kGroupRows; ++i) x[i] = load(pairs + i * kGroupRows);
    transpose(x);
    for (int i = 0; i < kGroupRows; ++i) store_pairs(to + i * kGroupRows, (Vector<uint32_t>)x[i]);
  }

  template <int kCount>
  void score_tiles(int64_t first, int64_t t) {
    const int64_t width = elements<PairProducts>(p_.D);  // in pairs
    const KeyTile &a = key_tiles_[t], &b = key_tiles_[t + 1];
    const uint32_t* query = query_ + first * width * kGroupRows;
    tile_zero<0>();
    tile_zero<2>();
    if constexpr (kCount == 2) tile_zero<1>(), tile_zero<3>();
    for (int64_t e = 0; e < width; e += kGroupRows) {
      tile_load<4>(a.row<uint32_t>(0) + e, a.stride);
      tile_load<6>(query + e * kGroupRows, kTileBytes);
      tile_multiply_add<0, 4, 6>();
      tile_load<5>(b.row<uint32_t>(0) + e, b.stride);
      tile_multiply_add<2, 5, 6>();
      if constexpr (kCount == 2) {
        tile_load<7>(query + (width + e) * kGroupRows, kTileBytes);
        tile_multiply_add<1, 4, 7>();
        tile_multiply_add<3, 5, 7>();
      }
    }
    float* to = scores_ + t * kTileKeys * kGroupRows;
    constexpr int64_t kNext = kTileKeys * kGroupRows;
    tile_store<0>(to, kTileBytes);
    tile_store<2>(to + kNext, kTileBytes);
    if constexpr (kCount == 2) {
      tile_store<1>(to + kGroupScores, kTileBytes);
      tile_store<3>(to + kGroupScores + kNext, kTileBytes);
    }
  }

  template <int kCount, int kColumns>
  void weigh_tiles(KeyRange blocks, int64_t column, float* out) {
    tile_zero<0>();
    if constexpr (kColumns == 2) tile_zero<1>();
    if constexpr (kCount == 2) tile_zero<2>();
    if constexpr (kCount == 2 && kColumns == 2) tile_zero<3>();
    for (int64_t b = blocks.begin; b < blocks.end; ++b) {
      tile_load<4>(weights(0, b), kTileBytes);
      tile_load<6>(values(b, column), kTileBytes);
      tile_multiply_add<0, 4, 6>();
      if constexpr (kColumns == 2) {
        tile_load<7>(values(b, column + 1), kTileBytes);
        tile_multiply_add<1, 4, 7>();
      }
      if constexpr (kCount == 2) {
        tile_load<5>(weights(1, b), kTileBytes);
        tile_multiply_add<2, 5, 6>();
        if constexpr (kColumns == 2) tile_multiply_add<3, 5, 7>();
      }
    }
    const int64_t width = value_width(), stride = width * sizeof(float);
    float* to = out + column * kGroupRows;
    tile_store<0>(to, stride);
    if constexpr (kColumns == 2) tile_store<1>(to + kGroupRows, stride);
    if constexpr (kCount == 2) {
      tile_store<2>(to + kGroupRows * width, stride);
      if constexpr (kColumns == 2) tile_store<3>(to + kGroupRows * width + kGroupRows, stride);
    }
  }

  const AttentionParams& p_;
  const RowTile& tile_;
  KeyRange keys_;
  const uint32_t* query_;
  BFloat16Bits *key_buffer_, *value_buffer_;
  uint32_t *values_, *weights_;
  float* scores_;  // then the weights in pairs of keys, in their place
  Partial<float> spare_;
  uintptr_t end_;
  KeyTile key_tiles_[kChunkTiles];
  const float *key_scales_ = nullptr, *value_scales_ = nullptr;
  float key_scale_buffer_[kChunkKeys], value_scale_buffer_[kChunkKeys];
  TileRegisters registers_;
};

void pack_for_matrices(const AttentionParams& p, const RowTile& tile, void* query) {
  pack_queries<PairProducts>(p, tile, /*few=*/false, query);
}

constexpr TileOps<float> kMatrixOps{
    query_size<PairProducts>,
    MatrixEngine::scratch_size,
    pack_for_matrices,
    attend<MatrixEngine>,
    clear<float>,
    fold<float>,
    finish<float>,
};

}  // namespace
}  // namespace mqa::kernels::cpu
