// Products of bfloat16 queries, keys and values by AMX tiles, summed in float32.
//
// Scores are K Q^T: the keys' rows are the left operand as the cache has them, the packed queries
// the right one. The weights are transposed in registers to become the left operand of the second
// product, the values of two keys lie side by side in its right one. Each element of a product is
// one chain, whatever the number of rows.
//
// Stores that miss L1 do not overlap with lines on their way from memory, so what is written is
// little and written again soon: weights take the place of scores, and few rows are weighed strip
// by strip of the values' columns.
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
  static constexpr int64_t kLead = kWholeLead;
  static constexpr int64_t kSpanKeys = 32;  // that one product sums over
  static constexpr int kStripColumns = 2;   // of tiles, whose values are interleaved together

  MatrixEngine(const AttentionParams& p, const Work& work, const Work& next, const void* query,
               void* scratch)
      : p_(p),
        tile_(work.tile),
        keys_(work.keys),
        ahead_(p, work, next),
        query_(static_cast<const uint32_t*>(query)) {
    Pieces pieces(scratch);
    key_buffer_ = pieces.take<BFloat16Bits>((kChunkKeys + kTileKeys) * key_width());
    value_buffer_ = pieces.take<BFloat16Bits>(kChunkKeys * value_width());
    const int64_t strips = whole_tiles({0, value_width()}, kStripColumns * kGroupRows).end;
    values_ = pieces.take<uint32_t>(kChunkKeys / 2 * strips);
    scores_ = pieces.take<float>(kGroups * kGroupScores);
    spare_ = {pieces.take<float>(kGroupRows * value_width()), pieces.take<float>(kGroupRows),
              pieces.take<float>(kGroupRows)};
    end_ = pieces.next();
  }

  static int64_t scratch_size(const AttentionParams& p) {
    const Work none{};
    return MatrixEngine(p, none, none, nullptr, nullptr).end_;  // of pieces that begin at 0
  }

  void find_keys() {
    if (p_.key.is_packed) {
      PackedKeys<PairProducts<BFloat16Bits>>(p_, tile_, /*scaled=*/false)
          .find_rows(keys_, key_width(), key_buffer_, key_tiles_);
    } else {
      CacheTiles<BFloat16Bits>(p_, tile_, p_.key, /*scaled=*/false, p_.D, key_width(), key_buffer_)
          .find(keys_, nullptr, key_tiles_);
    }
    key_scales_ = find_scales(p_, tile_, p_.key, keys_, nullptr, key_scale_buffer_);
    // Products take tiles in pairs: the scores of one that is not there will be hidden.
    const KeyRange found = tiles_of(keys_);
    if (found.begin % 2) key_tiles_[found.begin - 1] = key_tiles_[found.begin];
    if (found.end % 2) key_tiles_[found.end] = key_tiles_[found.end - 1];
  }

  void find_values(const bool* used) {
    CacheTiles<BFloat16Bits>(p_, tile_, p_.value, /*scaled=*/true, p_.D_v, value_width(),
                             value_buffer_)
        .find(keys_, used, value_tiles_);
    interleaved_ = false;
  }

  float* scores(int64_t group) { return scores_ + group * kGroupScores; }

  const KeyTile* key_tiles() const { return key_tiles_; }

  const float* key_scales() const { return key_scales_; }

  const Partial<float>& spare() const { return spare_; }

  void score(const RowGroups& some) {
    for (int64_t t = some.span.begin / kTileKeys; t < some.span.end / kTileKeys; t += 2) {
      some.count == 2 ? score_tiles<2>(some.first, t) : score_tiles<1>(some.first, t);
    }
  }

  void weigh(const RowGroups& some, float scale, const Partial<float>& partial) {
    const KeyRange blocks{some.span.begin / kSpanKeys, some.span.end / kSpanKeys};
    for (int64_t g = 0; g < some.count; ++g) {
      float* pairs = scores(g);
      softmax<Layout, /*kExact=*/false>(kGroupRows, some.span, scale, pairs,
                                        partial.max + g * kGroupRows, partial.sum + g * kGroupRows,
                                        [&](int64_t, int64_t j, const Vector<float>* w) {
                                          store_pairs(w, pairs + j / 2 * kGroupRows);
                                          ahead_.fetch(p_.D / 16);
                                        });
      for (int64_t b = blocks.begin; b < blocks.end; ++b) transpose_block(weights(g, b));
    }
    if (!interleaves_by_strip() && !std::exchange(interleaved_, true)) interleave_all();
    for_each_strip([&](int64_t column, auto columns) {
      some.count == 2 ? weigh_strip<2, columns>(blocks, column, partial.out)
                      : weigh_strip<1, columns>(blocks, column, partial.out);
    });
  }

 private:
  static constexpr int64_t kGroupScores = kChunkKeys * kGroupRows;
  static constexpr int64_t kBlockPairs = kSpanKeys / 2 * kGroupRows;  // a tile of pairs
  static constexpr int64_t kBlocks = kChunkKeys / kSpanKeys;
  static constexpr int64_t kTileBytes = 64;  // of a packed tile's row
  static constexpr int64_t kKeptStrips = 4;  // of 32 keys, written in turn

  int64_t key_width() const { return elements<PairProducts<BFloat16Bits>>(p_.D) * 2; }
  int64_t value_width() const { return padded(p_.D_v); }

  uint32_t* weights(int64_t group, int64_t block) {
    return reinterpret_cast<uint32_t*>(scores(group)) + block * kBlockPairs;
  }

  // Rows that are weighed together need each value once, and find it in L1. Others share what the
  // first of them interleaved.
  bool interleaves_by_strip() const { return tile_.rows <= kGroups * kGroupRows; }

  // Of 32 keys and a strip: for each column of tiles [pair of keys][column].
  uint32_t* values(int64_t block, int64_t column) {
    const int64_t piece =
        interleaves_by_strip() ? block % kKeptStrips : column / kStripColumns * kBlocks + block;
    return values_ + piece * kStripColumns * kBlockPairs;
  }

  // Calls body(first column, how many, as a constant) for strips of the values' columns of tiles.
  template <class Body>
  void for_each_strip(const Body& body) const {
    const int64_t columns = value_width() / kGroupRows;
    int64_t c = 0;
    for (; c + kStripColumns <= columns; c += kStripColumns) {
      body(c, std::integral_constant<int, kStripColumns>());
    }
    if (c < columns) body(c, std::integral_constant<int, 1>());
  }

  void interleave_all() {
    const KeyRange blocks = whole_tiles(tiles_of(keys_), 2);
    for_each_strip([&](int64_t column, auto columns) {
      for (int64_t b = blocks.begin / 2; b < blocks.end / 2; ++b) interleave<columns>(b, column);
    });
  }

  template <int kColumns>
  void interleave(int64_t block, int64_t column) {
    const KeyRange found = tiles_of(keys_);
    uint32_t* to = values(block, column);
    for (int64_t t = 2 * block; t < 2 * block + 2; ++t, to += kBlockPairs / 2) {
      if (t >= found.begin && t < found.end) {
        interleave_tile<kColumns>(value_tiles_[t], column * kGroupRows, to);
      } else {
        for (int c = 0; c < kColumns; ++c) std::fill_n(to + c * kBlockPairs, kBlockPairs / 2, 0);
      }
    }
  }

  template <int kColumns>
  void interleave_tile(const KeyTile& tile, int64_t column, uint32_t* to) {
    for (int64_t j = 0; j < kTileKeys; j += 2, to += kGroupRows) {
      ahead_.fetch(2);
      const BFloat16Bits *a = tile.row<BFloat16Bits>(j) + column,
                         *b = tile.row<BFloat16Bits>(j + 1) + column;
      Vector<uint32_t> pairs[kColumns];
      PairProducts<BFloat16Bits>::interleave(a, b, pairs);
      for (int c = 0; c < kColumns; ++c) store(to + c * kBlockPairs, pairs[c]);
    }
  }

  // [pair of keys][row] to [row][pair of keys], in place.
  static void transpose_block(uint32_t* pairs) {
    Vector<uint32_t> x[kGroupRows];
    for (int i = 0; i < kGroupRows; ++i) x[i] = load(pairs + i * kGroupRows);
    transpose(x);
    for (int i = 0; i < kGroupRows; ++i) store(pairs + i * kGroupRows, x[i]);
  }

  // Registers 0 to 3 hold sums, 4 and 5 left operands, 6 and 7 right ones.
  template <int kCount>
  void score_tiles(int64_t first, int64_t t) {
    const int64_t width = elements<PairProducts<BFloat16Bits>>(p_.D);  // in pairs
    const KeyTile *a = key_tiles_ + t, *b = a + 1;
    const uint32_t* query = query_ + first * width * kGroupRows;
    tile_zero<0>(), tile_zero<1>();
    if constexpr (kCount == 2) tile_zero<2>(), tile_zero<3>();
    for (int64_t e = 0; e < width; e += kGroupRows) {
      tile_load<6>(query + e * kGroupRows, kTileBytes);
      ahead_.fetch(16);
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

  template <int kCount, int kColumns>
  void weigh_strip(KeyRange blocks, int64_t column, float* out) {
    const int64_t width = value_width(), stride = width * sizeof(float);
    const bool interleaves = interleaves_by_strip();
    tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
    if (interleaves) interleave<kColumns>(blocks.begin, column);
    for (int64_t b = blocks.begin; b < blocks.end; ++b) {
      // One block before its use: tiles are not loaded from stores that have not yet left.
      if (interleaves && b + 1 < blocks.end) interleave<kColumns>(b + 1, column);
      const uint32_t* pairs = values(b, column);
      tile_load<4>(weights(0, b), kTileBytes);
      tile_load<6>(pairs, kTileBytes);
      tile_multiply_add<0, 4, 6>();
      if constexpr (kColumns == 2) {
        tile_load<7>(pairs + kBlockPairs, kTileBytes);
        tile_multiply_add<1, 4, 7>();
      }
      if constexpr (kCount == 2) {
        tile_load<5>(weights(1, b), kTileBytes);
        tile_multiply_add<2, 5, 6>();
        if constexpr (kColumns == 2) tile_multiply_add<3, 5, 7>();
      }
    }
    float* to = out + column * kGroupRows;
    float* second = to + kGroupRows * width;
    tile_store<0>(to, stride);
    if constexpr (kColumns == 2) tile_store<1>(to + kGroupRows, stride);
    if constexpr (kCount == 2) tile_store<2>(second, stride);
    if constexpr (kCount == 2 && kColumns == 2) tile_store<3>(second + kGroupRows, stride);
  }

  const AttentionParams& p_;
  const RowTile& tile_;
  KeyRange keys_;
  Ahead<kLead> ahead_;
  const uint32_t* query_;
  BFloat16Bits *key_buffer_, *value_buffer_;
  uint32_t* values_;
  float* scores_;  // then the weights in pairs of keys, in their place
  Partial<float> spare_;
  uintptr_t end_;
  bool interleaved_ = false;  // all values of the chunk
  KeyTile key_tiles_[kChunkTiles], value_tiles_[kChunkTiles];
  const float* key_scales_ = nullptr;
  float key_scale_buffer_[kChunkKeys];
};

void pack_for_matrices(const AttentionParams& p, const RowTile& tile, void* query) {
  pack_queries<PairProducts<BFloat16Bits>>(p, tile, /*few=*/false, query);
}

void attend_by_matrices(const AttentionParams& p, const Work& work, const Work& next,
                        const void* query, void* scratch, const Partial<float>& partial) {
  const TileRegisters registers;
  attend<MatrixEngine>(p, work, next, query, scratch, partial);
}

constexpr TileOps<float> kMatrixOps{
    query_size<PairProducts<BFloat16Bits>>,
    MatrixEngine::scratch_size,
    pack_for_matrices,
    fetch_lead<MatrixEngine::kLead>,
    attend_by_matrices,
    clear<float>,
    fold<float>,
    PairProducts<BFloat16Bits>::finish,
};

}  // namespace
}  // namespace mqa::kernels::cpu
