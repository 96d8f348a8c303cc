// The keys and values of a chunk as the tiles read them: sixteen rows at a time, in place where the
// cache has them in the right dtype and at one distance, else converted into a buffer.
#pragma once

#include <bit>
#include <cstring>
#include <type_traits>

#include "../formats.h"
#include "../slots.h"
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

struct BFloat16Bits {
  uint16_t bits;
};
struct Float16Bits {
  uint16_t bits;
};

template <class To>
constexpr DType kDTypeOf = DType::kInt8;
template <>
constexpr DType kDTypeOf<double> = DType::kFloat64;
template <>
constexpr DType kDTypeOf<float> = DType::kFloat32;
template <>
constexpr DType kDTypeOf<BFloat16Bits> = DType::kBFloat16;
template <>
constexpr DType kDTypeOf<Float16Bits> = DType::kFloat16;

// to[0, stride) = scale * the row, then zeros. What becomes bfloat16 has no scale and fits in it;
// other types are for caches that hold them.
template <class To>
void convert_row(const Cache& cache, int64_t offset, int64_t width, float scale, To* to,
                 int64_t stride) {
  with_format(cache.dtype, [&](auto format) {
    using Storage = typename decltype(format)::Storage;
    const Storage* from = static_cast<const Storage*>(cache.data) + offset;
    if (cache.dtype == kDTypeOf<To>) {
      std::memcpy(to, from, width * sizeof(To));
    } else if constexpr (std::is_same_v<To, BFloat16Bits>) {
      for (int64_t i = 0; i < width; ++i) {
        const float x = static_cast<float>(format.widen(from[i]));
        to[i].bits = static_cast<uint16_t>(std::bit_cast<uint32_t>(x) >> 16);
      }
    } else if constexpr (std::is_floating_point_v<To>) {
      widen_row(format, from, width, to);
      if (scale != 1) {
        for (int64_t i = 0; i < width; ++i) to[i] *= scale;
      }
    }
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
  CacheTiles(const AttentionParams& p, const RowTile& tile, const Cache& cache, int64_t width,
             int64_t stride, To* buffer)
      : p_(p),
        tile_(tile),
        cache_(cache),
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
      const float scale =
          kScaled && cache_.scales.data ? scale_at(cache_, place, tile_.kv_head) : 1.f;
      convert_row(cache_, row_offset(cache_, place, tile_.kv_head), width_, scale, to + j * stride_,
                  stride_);
    }
    return {to, stride_ * static_cast<int64_t>(sizeof(To))};
  }

  // bfloat16 holds codes of 8 bits exactly, but not their products with a scale.
  static constexpr bool kScaled = std::is_floating_point_v<To>;

  const AttentionParams& p_;
  const RowTile& tile_;
  const Cache& cache_;
  int64_t width_, stride_;
  To* buffer_;
  bool in_place_;
};

// The scales of slots, by position in the chunk, for rows that were converted without; those of
// slots outside `keys` or not in `used` are 0. Null where the cache has none.
inline const float* find_scales(const AttentionParams& p, const RowTile& tile, const Cache& cache,
                                KeyRange keys, const bool* used, float* scales) {
  if (!cache.scales.data) return nullptr;
  std::fill_n(scales, kChunkKeys, 0.f);
  for (int64_t key = keys.begin; key < keys.end; ++key) {
    const int64_t j = key % kChunkKeys;
    if (used && !used[j]) continue;
    scales[j] = scale_at(cache, place_of(p.block_table, tile.batch, key), tile.kv_head);
  }
  return scales;
}

}  // namespace
}  // namespace mqa::kernels::cpu
