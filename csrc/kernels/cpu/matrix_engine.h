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

  MatrixEngine(const AttentionParams& p, const RowTile& tile, KeyRange keys, KeyRange ahead,
               const void* query, void* scratch)
      : p_(p),
        tile_(tile),
        keys_(keys),
        ahead_(p, tile, ahead),
        query_(static_cast<const uint32_t*>(query)) {
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
    return MatrixEngine(p, none, {}, {}, nullptr, nullptr).end_;  // of pieces that begin at 0
  }

  void find_keys() {
    CacheTiles<BFloat16Bits>(p_, tile_, p_.key, p_.D, key_width(), key_buffer_)
        .find(keys_, nullptr, key_tiles_);
    key_scales_ = find_scales(p_, tile_, p_.key, keys_, nullptr, key_scale_buffer_);
    // Products take tiles in pairs: the scores of one that is not there will be hidden.
    const KeyRange found = tiles_of(keys_);
    if (found.begin % 2) key_tiles_[found.begin - 1] = key_tiles_[found.begin];
    if (found.end % 2) key_tiles_[found.end] = key_tiles_[found.end - 1];
  }

  void find_values(const bool* used) {
    CacheTiles<BFloat16Bits>(p_, tile_, p_.value, p_.D_v, value_width(), value_buffer_)
        .find(keys_, used, value_tiles_);
    value_scales_ = find_scales(p_, tile_, p_.value, keys_, used, value_scale_buffer_);
    interleaved_ = 0;
  }

  float* scores(int64_t group) { return scores_ + group * kGroupScores; }

  const float* key_scales() const { return key_scales_; }

  const Partial<float>& spare() const { return spare_; }

  void score(const RowGroups& some) {
    for (int64_t t = some.span.begin / kTileKeys; t < some.span.end / kTileKeys; t += 2) {
      some.count == 2 ? score_tiles<2>(some.first, t) : score_tiles<1>(some.first, t);
      ahead_.fetch(6);
    }
  }

  void weigh(const RowGroups& some, float scale, const Partial<float>& partial) {
    for (int64_t g = 0; g < some.count; ++g) {
      float* pairs = scores(g);
      softmax<Layout, /*kExact=*/false>(
          kGroupRows, some.span, scale, pairs, partial.max + g * kGroupRows,
          partial.sum + g * kGroupRows, [&](int64_t, int64_t j, const Vector<float>* w) {
            store_pairs(w, j, value_scales_, pairs + j / 2 * kGroupRows);
            ahead_.fetch(1);
          });
      for (int64_t b = some.span.begin / kSpanKeys; b < some.span.end / kSpanKeys; ++b) {
        transpose_block(pairs + b * kBlockPairs, weights(g, b));
      }
    }
    const KeyRange blocks{some.span.begin / kSpanKeys, some.span.end / kSpanKeys};
    for (int64_t b = blocks.begin / kept_blocks_ * kept_blocks_; b < blocks.end;
         b += kept_blocks_) {
      const KeyRange kept{b, b + kept_blocks_};
      if (interleaved_ <= b) interleave(kept);
      weigh_blocks(intersect(kept, blocks), some.count, b <= blocks.begin, partial.out);
    }
  }

 private:
  static constexpr int64_t kGroupScores = kChunkKeys * kGroupRows;
  static constexpr int64_t kBlockPairs = kSpanKeys / 2 * kGroupRows;  // a tile of pairs
  static constexpr int64_t kBlocks = kChunkKeys / kSpanKeys;
  static constexpr int64_t kTileBytes = 64;  // of a packed tile's row

  int64_t key_width() const { return elements<PairProducts>(p_.D) * 2; }
  int64_t value_width() const { return padded(p_.D_v); }

  uint32_t* weights(int64_t group, int64_t block) {
    return weights_ + (group * kBlocks + block) * kBlockPairs;
  }
  // Of 32 keys and 16 columns: [pair of keys][column].
  uint32_t* values(int64_t block, int64_t column) {
    const int64_t columns = value_width() / kGroupRows;
    return values_ + (block % kept_blocks_ * columns + column) * kBlockPairs;
  }

  // Blocks outside the keys become zeros.
  void interleave(KeyRange blocks) {
    const KeyRange found = tiles_of(keys_);
    for (int64_t t = 2 * blocks.begin; t < 2 * blocks.end; ++t) {
      const bool is_found = t >= found.begin && t < found.end;
      is_found ? interleave(t) : clear_values(t);
      ahead_.fetch(4);
    }
    interleaved_ = blocks.end;
  }

  void interleave(int64_t t) {
    const int64_t columns = value_width() / kGroupRows;
    uint32_t* to = values(t / 2, 0) + t % 2 * (kBlockPairs / 2);
    for (int64_t s = 0; s < kTileKeys / 2; ++s, to += kGroupRows) {
      const BFloat16Bits* a = value_tiles_[t].row<BFloat16Bits>(2 * s);
      const BFloat16Bits* b = value_tiles_[t].row<BFloat16Bits>(2 * s + 1);
      for (int64_t c = 0; c < columns; ++c) {
        store(to + c * kBlockPairs, side_by_side(a + c * kGroupRows, b + c * kGroupRows));
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
    for (int i = 0; i < kGroupRows; ++i) store(to + i * kGroupRows, (Vector<uint32_t>)x[i]);
  }

  // Registers 0 to 3 hold sums, 4 and 5 left operands, 6 and 7 right ones.
  template <int kCount>
  void score_tiles(int64_t first, int64_t t) {
    const int64_t width = elements<PairProducts>(p_.D);  // in pairs
    const KeyTile *a = key_tiles_ + t, *b = a + 1;
    const uint32_t* query = query_ + first * width * kGroupRows;
    tile_zero<0>(), tile_zero<1>();
    if constexpr (kCount == 2) tile_zero<2>(), tile_zero<3>();
    for (int64_t e = 0; e < width; e += kGroupRows) {
      tile_load<6>(query + e * kGroupRows, kTileBytes);
      tile_load<4>(a->row<uint32_t>(0) + e, a->stride);
      tile_multiply_add<0, 4, 6>();
      tile_load<5>(b->row<uint32_t>(0) + e, b->stride);
      tile_multiply_add<1, 5, 6>();
      if constexpr (kCount == 2) {
        tile_load<7>(query + (width + e) * kGroupRows, kTileBytes);
        tile_multiply_add<2, 4, 7>();
        tile_multiply_add<3, 5, 7>();
      }
    }
    constexpr int64_t kNext = kTileKeys * kGroupRows;
    float* to = scores_ + t * kNext;
    tile_store<0>(to, kTileBytes);
    tile_store<1>(to + kNext, kTileBytes);
    if constexpr (kCount == 2) {
      tile_store<2>(to + kGroupScores, kTileBytes);
      tile_store<3>(to + kGroupScores + kNext, kTileBytes);
    }
  }

  void weigh_blocks(KeyRange blocks, int64_t groups, bool is_first, float* out) {
    const int64_t columns = value_width() / kGroupRows;
    int64_t c = 0;
    if (groups == 2) {
      for (; c + 2 <= columns; c += 2) weigh_tiles<2, 2>(blocks, c, is_first, out);
      for (; c < columns; ++c) weigh_tiles<2, 1>(blocks, c, is_first, out);
    } else {
      for (; c + 4 <= columns; c += 4) weigh_tiles<1, 4>(blocks, c, is_first, out);
      for (; c < columns; ++c) weigh_tiles<1, 1>(blocks, c, is_first, out);
    }
  }

  // Sums start from zero or go on from `out`.
  template <int kCount, int kColumns>
  void weigh_tiles(KeyRange blocks, int64_t column, bool is_first, float* out) {
    constexpr bool kTwoGroups = kCount == 2;
    ahead_.fetch(10);
    const int64_t width = value_width(), stride = width * sizeof(float);
    // Register kColumns * group + column.
    float* to[4] = {};
    for (int i = 0; i < kCount * kColumns; ++i) {
      to[i] = out + i / kColumns * kGroupRows * width + (column + i % kColumns) * kGroupRows;
    }
    if (is_first) {
      tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
    } else {
      tile_load<0>(to[0], stride);
      if constexpr (kCount * kColumns > 1) tile_load<1>(to[1], stride);
      if constexpr (kCount * kColumns > 2) tile_load<2>(to[2], stride), tile_load<3>(to[3], stride);
    }
    for (int64_t b = blocks.begin; b < blocks.end; ++b) {
      tile_load<4>(weights(0, b), kTileBytes);
      tile_load<6>(values(b, column), kTileBytes);
      tile_multiply_add<0, 4, 6>();
      if constexpr (kColumns > 1) {
        tile_load<7>(values(b, column + 1), kTileBytes);
        tile_multiply_add<1, 4, 7>();
      }
      if constexpr (kTwoGroups) {
        tile_load<5>(weights(1, b), kTileBytes);
        tile_multiply_add<kColumns, 5, 6>();
        if constexpr (kColumns > 1) tile_multiply_add<3, 5, 7>();
      }
      if constexpr (kColumns == 4) {
        tile_load<6>(values(b, column + 2), kTileBytes);
        tile_multiply_add<2, 4, 6>();
        tile_load<7>(values(b, column + 3), kTileBytes);
        tile_multiply_add<3, 4, 7>();
      }
    }
    tile_store<0>(to[0], stride);
    if constexpr (kCount * kColumns > 1) tile_store<1>(to[1], stride);
    if constexpr (kCount * kColumns > 2) tile_store<2>(to[2], stride), tile_store<3>(to[3], stride);
  }

  const AttentionParams& p_;
  const RowTile& tile_;
  KeyRange keys_;
  Ahead ahead_;
  const uint32_t* query_;
  BFloat16Bits *key_buffer_, *value_buffer_;
  uint32_t *values_, *weights_;
  float* scores_;  // then the weights in pairs of keys, in their place
  Partial<float> spare_;
  uintptr_t end_;
  // Rows that are weighed together need each value once: two blocks at a time stay in L1. Others
  // find all of the chunk interleaved by the first.
  int64_t kept_blocks_ = tile_.rows <= kGroups * kGroupRows ? 2 : kBlocks;
  int64_t interleaved_ = 0;  // all blocks before it have been
  KeyTile key_tiles_[kChunkTiles], value_tiles_[kChunkTiles];
  const float *key_scales_ = nullptr, *value_scales_ = nullptr;
  float key_scale_buffer_[kChunkKeys], value_scale_buffer_[kChunkKeys];
};

void pack_for_matrices(const AttentionParams& p, const RowTile& tile, void* query) {
  pack_queries<PairProducts>(p, tile, /*few=*/false, query);
}

void attend_by_matrices(const AttentionParams& p, const RowTile& tile, KeyRange keys,
                        KeyRange ahead, const void* query, void* scratch,
                        const Partial<float>& partial) {
  const TileRegisters registers;
  attend<MatrixEngine>(p, tile, keys, ahead, query, scratch, partial);
}

constexpr TileOps<float> kMatrixOps{
    query_size<PairProducts>,
    MatrixEngine::scratch_size,
    pack_for_matrices,
    attend_by_matrices,
    clear<float>,
    fold<float>,
    finish<float>,
};

}  // namespace
}  // namespace mqa::kernels::cpu
