// The keys and values of a chunk as the tiles read them: sixteen rows at a time, in place where the
// cache has them in the right dtype and at one distance, else converted into a buffer.
#pragma once

#include <cstring>
#include <type_traits>

#include "../slots.h"
#include "stored.h"
#include "tile.h"

namespace mqa::kernels::cpu {
namespace {

constexpr int64_t kTileKeys = 16;
constexpr int64_t kChunkTiles = kChunkKeys / kTileKeys;

struct KeyTile {
  const void* rows;
  int64_t stride;  // bytes

  template <class To>
  const To* row(int64_t j) const {
    return reinterpret_cast<const To*>(static_cast<const char*>(rows) + j * stride);
  }
};

// to[0, stride) = scale * the row, then zeros; without a scale, null, the row. Types other than Acc
// and bfloat16 are for caches that hold them.
template <class To>
void convert_row(const Cache& cache, int64_t offset, int64_t width, const float* scale, To* to,
                 int64_t stride) {
  with_format(cache.dtype, [&](auto format) {
    using Storage = typename decltype(format)::Storage;
    const Storage* from = static_cast<const Storage*>(cache.data) + offset;
    if (cache.dtype == kDTypeOf<To>) {
      std::memcpy(to, from, width * sizeof(To));
    } else if constexpr (std::is_floating_point_v<To>) {
      widen_row(format, from, width, to);
      for (int64_t i = 0; scale && i < width; ++i) to[i] *= *scale;
    }
#if defined(__AVX512BF16__)
    else if constexpr (std::is_same_v<To, BFloat16Bits> && sizeof(Storage) == 1) {
      using Code = std::conditional_t<std::is_signed_v<Storage>, Int8Bits, Float8Bits>;
      narrow_codes(reinterpret_cast<const Code*>(from), width, scale, to);
    }
#endif
  });
  std::memset(to + width, 0, (stride - width) * sizeof(To));
}

inline KeyRange whole_tiles(KeyRange keys, int64_t tile) {
  return {keys.begin / tile * tile, (keys.end + tile - 1) / tile * tile};
}

// The tiles that hold some of `keys`, counted from the start of their chunk.
inline KeyRange tiles_of(KeyRange keys) {
  const int64_t chunk = chunk_start(keys);
  const KeyRange whole = whole_tiles({keys.begin - chunk, keys.end - chunk}, kTileKeys);
  return {whole.begin / kTileKeys, whole.end / kTileKeys};
}

// Finds the rows of one KV head for `keys`, which lie in one chunk, and stores where in `tiles`, by
// position in the chunk. Rows have `stride` elements; those of slots outside `keys` or not in
// `used` (null: all) are zeros.
template <class To>
class CacheTiles {
 public:
  // `scaled`: copied rows are multiplied by their scales, where the cache has any.
  CacheTiles(const AttentionParams& p, const RowTile& tile, const Cache& cache, bool scaled,
             int64_t width, int64_t stride, To* buffer)
      : p_(p),
        tile_(tile),
        cache_(cache),
        scaled_(scaled && cache.scales.data),
        width_(width),
        stride_(stride),
        buffer_(buffer),
        in_place_(cache.dtype == kDTypeOf<To> && width == stride &&
                  (!p.block_table.pages || p.block_table.page_size % kTileKeys == 0)) {}

  void find(KeyRange keys, const bool* used, KeyTile* tiles) const {
    const KeyRange found = tiles_of(keys);
    for (int64_t t = found.begin; t < found.end; ++t) {
      const int64_t first = chunk_start(keys) + t * kTileKeys;
      const KeyRange valid = intersect(keys, {first, first + kTileKeys});
      const bool whole = valid.end - valid.begin == kTileKeys;
      tiles[t] = in_place_ && whole && !used
                     ? in_place(first)
                     : copied(first, valid, used ? used + t * kTileKeys : nullptr,
                              buffer_ + t * kTileKeys * stride_);
    }
  }

 private:
  KeyTile in_place(int64_t first) const {
    const int64_t offset =
        row_offset(cache_, place_of(p_.block_table, tile_.batch, first), tile_.kv_head);
    return {static_cast<const To*>(cache_.data) + offset,
            cache_.slot_stride * static_cast<int64_t>(sizeof(To))};
  }

  KeyTile copied(int64_t first, KeyRange valid, const bool* used, To* to) const {
    for (int64_t j = 0; j < kTileKeys; ++j) {
      const int64_t key = first + j;
      if (key < valid.begin || key >= valid.end || (used && !used[j])) {
        std::memset(to + j * stride_, 0, stride_ * sizeof(To));
        continue;
      }
      const SlotPlace place = place_of(p_.block_table, tile_.batch, key);
      const float* scale = scaled_ ? &scale_at(cache_, place, tile_.kv_head) : nullptr;
      convert_row(cache_, row_offset(cache_, place, tile_.kv_head), width_, scale, to + j * stride_,
                  stride_);
    }
    return {to, stride_ * static_cast<int64_t>(sizeof(To))};
  }

  const AttentionParams& p_;
  const RowTile& tile_;
  const Cache& cache_;
  bool scaled_;
  int64_t width_, stride_;
  To* buffer_;
  bool in_place_;
};

// The scales of slots, by position in the chunk, for rows that are read without; those of
// slots outside `keys` or not in `used` are 0. Null where the cache has none.
inline const float* find_scales(const AttentionParams& p, const RowTile& tile, const Cache& cache,
                                KeyRange keys, const bool* used, float* scales) {
  if (!cache.scales.data) return nullptr;
  const int64_t chunk = chunk_start(keys);
  std::fill_n(scales, kChunkKeys, 0.f);
  for (int64_t key = keys.begin, count; key < keys.end; key += count) {
    const SlotPlace place = place_of(p.block_table, tile.batch, key);
    count = run_of_slots(p.block_table, place, keys.end - key);
    const float* from = &scale_at(cache, place, tile.kv_head);
    for (int64_t i = 0; i < count; ++i) {
      scales[key - chunk + i] = from[i * cache.scales.slot_stride];
    }
  }
  for (int64_t j = 0; used && j < kChunkKeys; ++j) {
    if (!used[j]) scales[j] = 0;
  }
  return scales;
}

}  // namespace
}  // namespace mqa::kernels::cpu
