// Products of bfloat16 queries with int8 keys and values by AMX tiles, summed in int32.
//
// Codes are the operands as the cache has them. What they are multiplied by, a query row or a row's
// weights times the values' scales, becomes integers of 15 bits relative to its own largest
// element, as two codes: x = unit * (128 * high + low). bfloat16 keeps 8 bits.
//
// Scores are K Q^T, as in matrix_engine.h. Four keys' values lie side by side in the right operand
// of the second product.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "amx.h"
#include "vector_engine.h"

namespace mqa::kernels::cpu {
namespace {

constexpr int64_t kTileCodes = 64;       // of a tile's row
constexpr int64_t kTileBytes = 16 * 64;  // of a tile
constexpr float kLargestInteger = 127 * 128;

constexpr int64_t code_width(int64_t width) {
  return (width + kTileCodes - 1) / kTileCodes * kTileCodes;
}

inline Vector<float> joined(const int32_t* high, const int32_t* low) {
  return (Vector<float>)_mm512_cvtepi32_ps((__m512i)((load(high) << 7) + load(low)));
}

// The codes of four vectors of integers in [-127 * 128, 127 * 128], side by side in their lanes.
struct Codes {
  __m512i high, low;

  Codes(Vector<float> a, Vector<float> b, Vector<float> c, Vector<float> d) {
    const auto pair = [](Vector<float> first, Vector<float> second) {
      return _mm512_packs_epi32(_mm512_cvtps_epi32((__m512)first),
                                _mm512_cvtps_epi32((__m512)second));
    };
    const __m512i ab = pair(a, b), cd = pair(c, d), half = _mm512_set1_epi16(64);
    const __m512i ab_high = _mm512_srai_epi16(_mm512_add_epi16(ab, half), 7);
    const __m512i cd_high = _mm512_srai_epi16(_mm512_add_epi16(cd, half), 7);
    high = side_by_side(ab_high, cd_high);
    low = side_by_side(_mm512_sub_epi16(ab, _mm512_slli_epi16(ab_high, 7)),
                       _mm512_sub_epi16(cd, _mm512_slli_epi16(cd_high, 7)));
  }

 private:
  static __m512i side_by_side(__m512i ab, __m512i cd) {
    const __m512i order =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    return _mm512_shuffle_epi8(_mm512_packs_epi16(ab, cd), order);
  }
};

class IntegerEngine {
 public:
  using Acc = float;
  using Layout = RowsInLanes;
  static constexpr int64_t kGroups = 1;
  static constexpr int64_t kSpanKeys = 64;  // that one product sums over

  IntegerEngine(const AttentionParams& p, const Work& work, const Work& ahead, const void* query,
                void* scratch)
      : p_(p),
        tile_(work.tile),
        keys_(work.keys),
        ahead_(p, ahead),
        query_(static_cast<const char*>(query)) {
    Pieces pieces(scratch);
    key_buffer_ = pieces.take<int8_t>(kChunkKeys * code_width(p.D));
    value_buffer_ = pieces.take<int8_t>(kChunkKeys * code_width(p.D_v));
    values_ = pieces.take<int8_t>(kChunkKeys * code_width(p.D_v));
    scores_ = pieces.take<float>(kChunkKeys * kGroupRows);
    low_ = pieces.take<int32_t>(kChunkKeys / 4 * kGroupRows);
    sums_ = pieces.take<int32_t>(2 * 4 * kTileBytes / 4);
    spare_ = {pieces.take<float>(kGroupRows * padded(p.D_v)), pieces.take<float>(kGroupRows),
              pieces.take<float>(kGroupRows)};
    end_ = pieces.next();
  }

  static int64_t scratch_size(const AttentionParams& p) {
    const Work none{};
    return IntegerEngine(p, none, none, nullptr, nullptr).end_;  // of pieces that begin at 0
  }

  // For each group of 16 rows their units, then for each 64 columns a tile of high and one of low
  // codes, four columns side by side.
  static int64_t group_size(const AttentionParams& p) {
    return kGroupRows * sizeof(float) + 2 * code_width(p.D) / kTileCodes * kTileBytes;
  }
  static int64_t query_size(const AttentionParams& p) {
    return kTileRows / kGroupRows * group_size(p);
  }

  static void pack_queries(const AttentionParams& p, const RowTile& tile, void* query) {
    const int64_t width = code_width(p.D), groups = (tile.rows + kGroupRows - 1) / kGroupRows;
    std::fill_n(static_cast<char*>(query), groups * group_size(p), 0);
    float row[kMostIntegerColumns];
    std::fill_n(row, width, 0.f);
    RowWalk walk(p, tile, 0);
    for (int64_t r = 0; r < tile.rows; ++r, ++walk) {
      const auto [head, token] = *walk;
      const int64_t offset = tile.batch * p.query_batch_stride + head * p.query_head_stride +
                             token * p.query_token_stride;
      load_row(p.dtype, p.query, offset, p.D, 1.f, row);
      char* group = static_cast<char*>(query) + r / kGroupRows * group_size(p);
      pack_row(row, width, r % kGroupRows, group);
    }
  }

  void find_keys() {
    CacheTiles<int8_t>(p_, tile_, p_.key, p_.D, code_width(p_.D), key_buffer_)
        .find(keys_, nullptr, key_tiles_);
    key_scales_ = find_scales(p_, tile_, p_.key, keys_, nullptr, key_scale_buffer_);
    pair_tiles(key_tiles_);
  }

  void find_values(const bool* used) {
    CacheTiles<int8_t>(p_, tile_, p_.value, p_.D_v, code_width(p_.D_v), value_buffer_)
        .find(keys_, used, value_tiles_);
    value_scales_ = find_scales(p_, tile_, p_.value, keys_, used, value_scale_buffer_);
    interleaved_ = false;
  }

  float* scores(int64_t) { return scores_; }
  const float* key_scales() const { return key_scales_; }
  const Partial<float>& spare() const { return spare_; }

  void score(const RowGroups& some) {
    const char* group = query_ + some.first * group_size(p_);
    const Vector<float> units = load(reinterpret_cast<const float*>(group));
    const char* tiles = group + kGroupRows * sizeof(float);
    for (int64_t t = some.span.begin / kTileKeys; t < some.span.end / kTileKeys; t += 2) {
      score_tiles(tiles, units, t);
    }
  }

  void weigh(const RowGroups& some, float scale, const Partial<float>& partial) {
    Vector<int32_t> largest = {};  // of magnitudes' bits: NaN is above infinity
    const auto store_weights = [&](int64_t, int64_t j, const Vector<float>* weights) {
      for (int k = 0; k < kChains; ++k) {
        const Vector<float> x = weights[k] * value_scales_[j + k];
        largest = maximum((Vector<int32_t>)x & 0x7fffffff, largest);
        store(scores_ + (j + k) * kGroupRows, x);
      }
      ahead_.fetch(p_.D / 32);
    };
    softmax<Layout, /*kExact=*/false>(kGroupRows, some.span, scale, scores_, partial.max,
                                      partial.sum, store_weights);
    const Vector<float> units = (Vector<float>)largest / kLargestInteger;
    quantise_weights(some.span, inverse_of(units));
    const int64_t strips = code_width(p_.D_v) / kTileCodes;
    if (!interleaves_by_strip() && !std::exchange(interleaved_, true)) {
      for (int64_t s = 0; s < strips; ++s) interleave(tiles_of(keys_), s);
    }
    for (int64_t s = 0; s < strips; ++s) {
      if (interleaves_by_strip()) interleave(tiles_of(keys_), s);
      weigh_strip(some.span, s, units, partial.out);
    }
  }

 private:
  static constexpr int64_t kRowBytes = 64;  // of a packed tile

  // Of units that are 0, NaN or infinite it is 0: codes are then 0, and times the unit 0 or NaN.
  static Vector<float> inverse_of(Vector<float> units) {
    return units > 0 && units < INFINITY ? 1 / units : Vector<float>{};
  }

  static void pack_row(const float* row, int64_t width, int64_t r, char* group) {
    int32_t largest = 0;
    for (int64_t i = 0; i < width; ++i) {
      largest = std::max(largest, std::bit_cast<int32_t>(row[i]) & 0x7fffffff);
    }
    const float unit = std::bit_cast<float>(largest) / kLargestInteger;
    reinterpret_cast<float*>(group)[r] = unit;
    const Vector<float> inverse = inverse_of(broadcast(unit));
    for (int64_t i = 0; i < width; i += kTileCodes) {
      Vector<float> x[4];  // a column of four in each
      for (int64_t k = 0; k < kTileCodes; ++k) x[k % 4][k / 4] = row[i + k];
      const Codes codes(x[0] * inverse, x[1] * inverse, x[2] * inverse, x[3] * inverse);
      char* tile = group + kGroupRows * sizeof(float) + i / kTileCodes * 2 * kTileBytes;
      for (const __m512i& half : {codes.high, codes.low}) {
        for (int64_t k = 0; k < kGroupRows; ++k) {
          std::memcpy(tile + k * kRowBytes + 4 * r, reinterpret_cast<const int32_t*>(&half) + k, 4);
        }
        tile += kTileBytes;
      }
    }
  }

  // Products take tiles in pairs: the scores of one that is not there will be hidden.
  void pair_tiles(KeyTile* tiles) const {
    const KeyRange found = tiles_of(keys_), whole = whole_tiles(found, kSpanKeys / kTileKeys);
    for (int64_t t = whole.begin; t < found.begin; ++t) tiles[t] = tiles[found.begin];
    for (int64_t t = found.end; t < whole.end; ++t) tiles[t] = tiles[found.end - 1];
  }

  bool interleaves_by_strip() const { return tile_.rows <= kGroupRows; }

  // Of 64 keys and 64 columns: four tiles.
  int8_t* values(int64_t block, int64_t strip) {
    const int64_t piece = interleaves_by_strip() ? 0 : strip * (kChunkKeys / kSpanKeys);
    return values_ + (piece + block) * 4 * kTileBytes;
  }

  void score_tiles(const char* query, Vector<float> units, int64_t t) {
    const KeyTile *a = key_tiles_ + t, *b = a + 1;
    tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
    for (int64_t d = 0; d < code_width(p_.D); d += kTileCodes, query += 2 * kTileBytes) {
      tile_load<6>(query, kRowBytes);
      tile_load<7>(query + kTileBytes, kRowBytes);
      ahead_.fetch(16);
      tile_load<4>(a->row<int8_t>(0) + d, a->stride);
      tile_multiply_add_codes<0, 4, 6>();
      tile_multiply_add_codes<1, 4, 7>();
      tile_load<5>(b->row<int8_t>(0) + d, b->stride);
      tile_multiply_add_codes<2, 5, 6>();
      tile_multiply_add_codes<3, 5, 7>();
    }
    constexpr int64_t kNext = kTileKeys * kGroupRows;
    tile_store<0>(sums_, kRowBytes);
    tile_store<1>(sums_ + kNext, kRowBytes);
    tile_store<2>(sums_ + 2 * kNext, kRowBytes);
    tile_store<3>(sums_ + 3 * kNext, kRowBytes);
    float* to = scores_ + t * kNext;
    for (int64_t i = 0; i < 2 * kTileKeys; ++i) {
      const int32_t* high = sums_ + (i / kTileKeys * 2 * kTileKeys + i % kTileKeys) * kGroupRows;
      store(to + i * kGroupRows, joined(high, high + kNext) * units);
    }
  }

  // Weights to [block of 64 keys][row][key], the high codes in the place of the scores.
  void quantise_weights(KeyRange span, Vector<float> inverse) {
    auto* high = reinterpret_cast<int32_t*>(scores_);
    for (int64_t j = span.begin; j < span.end; j += 4) {
      const float* x = scores_ + j * kGroupRows;
      const Codes codes(load(x) * inverse, load(x + kGroupRows) * inverse,
                        load(x + 2 * kGroupRows) * inverse, load(x + 3 * kGroupRows) * inverse);
      _mm512_storeu_si512(high + j / 4 * kGroupRows, codes.high);
      _mm512_storeu_si512(low_ + j / 4 * kGroupRows, codes.low);
    }
    for (int64_t b = span.begin / kSpanKeys; b < span.end / kSpanKeys; ++b) {
      transpose_block(high + b * kGroupRows * kGroupRows);
      transpose_block(low_ + b * kGroupRows * kGroupRows);
    }
  }

  static void transpose_block(int32_t* words) {
    Vector<int32_t> x[kGroupRows];
    for (int i = 0; i < kGroupRows; ++i) x[i] = load(words + i * kGroupRows);
    transpose(x);
    for (int i = 0; i < kGroupRows; ++i) store(words + i * kGroupRows, x[i]);
  }

  // Four keys side by side: unpacking leaves column 16 l + 4 i + k of the strip in tile i, at 4 l +
  // k.
  void interleave(KeyRange found, int64_t strip) {
    const KeyRange whole = whole_tiles(found, kSpanKeys / kTileKeys);
    for (int64_t t = whole.begin; t < whole.end; ++t) {
      int8_t* to = values(t / 4, strip) + t % 4 * 4 * kRowBytes;
      const bool is_there = t >= found.begin && t < found.end;
      for (int64_t j = 0; j < kTileKeys; j += 4, to += kRowBytes) {
        ahead_.fetch(4);
        __m512i rows[4];
        for (int k = 0; k < 4; ++k) {
          rows[k] =
              is_there ? _mm512_loadu_si512(value_tiles_[t].row<int8_t>(j + k) + strip * kTileCodes)
                       : _mm512_setzero_si512();
        }
        const __m512i ab_low = _mm512_unpacklo_epi8(rows[0], rows[1]);
        const __m512i ab_high = _mm512_unpackhi_epi8(rows[0], rows[1]);
        const __m512i cd_low = _mm512_unpacklo_epi8(rows[2], rows[3]);
        const __m512i cd_high = _mm512_unpackhi_epi8(rows[2], rows[3]);
        _mm512_storeu_si512(to, _mm512_unpacklo_epi16(ab_low, cd_low));
        _mm512_storeu_si512(to + kTileBytes, _mm512_unpackhi_epi16(ab_low, cd_low));
        _mm512_storeu_si512(to + 2 * kTileBytes, _mm512_unpacklo_epi16(ab_high, cd_high));
        _mm512_storeu_si512(to + 3 * kTileBytes, _mm512_unpackhi_epi16(ab_high, cd_high));
      }
    }
  }

  void weigh_strip(KeyRange span, int64_t strip, Vector<float> units, float* out) {
    constexpr int64_t kSums = kTileBytes / 4;
    for (int pair = 0; pair < 4; pair += 2) {
      tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
      for (int64_t b = span.begin / kSpanKeys; b < span.end / kSpanKeys; ++b) {
        const int8_t* columns = values(b, strip) + pair * kTileBytes;
        tile_load<4>(scores_ + b * kSums, kRowBytes);
        tile_load<5>(low_ + b * kSums, kRowBytes);
        tile_load<6>(columns, kRowBytes);
        tile_multiply_add_codes<0, 4, 6>();
        tile_multiply_add_codes<1, 5, 6>();
        tile_load<7>(columns + kTileBytes, kRowBytes);
        tile_multiply_add_codes<2, 4, 7>();
        tile_multiply_add_codes<3, 5, 7>();
      }
      int32_t* to = sums_ + pair * 2 * kSums;
      tile_store<0>(to, kRowBytes);
      tile_store<1>(to + kSums, kRowBytes);
      tile_store<2>(to + 2 * kSums, kRowBytes);
      tile_store<3>(to + 3 * kSums, kRowBytes);
    }
    const int64_t width = padded(p_.D_v), first = strip * kTileCodes;
    const int64_t vectors = std::min<int64_t>(4, (width - first) / kGroupRows);
    for (int64_t r = 0; r < kGroupRows; ++r) {
      __m512 x[4];
      for (int i = 0; i < 4; ++i) {
        const int32_t* high = sums_ + 2 * i * kSums + r * kGroupRows;
        x[i] = (__m512)(joined(high, high + kSums) * units[r]);
      }
      transpose_quarters(x);
      for (int64_t i = 0; i < vectors; ++i) {
        _mm512_storeu_ps(out + r * width + first + i * kGroupRows, x[i]);
      }
    }
  }

  // Quarter l of vector i becomes quarter i of vector l.
  static void transpose_quarters(__m512* x) {
    const __m512 a = _mm512_shuffle_f32x4(x[0], x[1], 0x44),
                 b = _mm512_shuffle_f32x4(x[0], x[1], 0xee);
    const __m512 c = _mm512_shuffle_f32x4(x[2], x[3], 0x44),
                 d = _mm512_shuffle_f32x4(x[2], x[3], 0xee);
    x[0] = _mm512_shuffle_f32x4(a, c, 0x88), x[1] = _mm512_shuffle_f32x4(a, c, 0xdd);
    x[2] = _mm512_shuffle_f32x4(b, d, 0x88), x[3] = _mm512_shuffle_f32x4(b, d, 0xdd);
  }

  const AttentionParams& p_;
  const RowTile& tile_;
  KeyRange keys_;
  Ahead ahead_;
  const char* query_;
  int8_t *key_buffer_, *value_buffer_, *values_;
  float* scores_;  // then weights, then their high codes, in the same place
  int32_t *low_, *sums_;
  Partial<float> spare_;
  uintptr_t end_;
  bool interleaved_ = false;  // all values of the chunk
  KeyTile key_tiles_[kChunkTiles], value_tiles_[kChunkTiles];
  const float *key_scales_ = nullptr, *value_scales_ = nullptr;
  float key_scale_buffer_[kChunkKeys], value_scale_buffer_[kChunkKeys];
};

void attend_by_integers(const AttentionParams& p, const Work& work, const Work& ahead,
                        const void* query, void* scratch, const Partial<float>& partial) {
  const TileRegisters registers;
  attend<IntegerEngine>(p, work, ahead, query, scratch, partial);
}

constexpr TileOps<float> kIntegerOps{
    IntegerEngine::query_size,
    IntegerEngine::scratch_size,
    IntegerEngine::pack_queries,
    attend_by_integers,
    clear<float>,
    fold<float>,
    finish<float>,
};

}  // namespace
}  // namespace mqa::kernels::cpu
