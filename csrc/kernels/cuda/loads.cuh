// Queries, keys and values on their way to shared memory.
#pragma once

#include "../params.h"
#include "tile.h"

namespace mqa::kernels::cuda {

// Where a query row of a tile comes from and goes to. Rows are ordered by token, then head.
struct RowPlace {
  int64_t head, token;
};
DEVICE RowPlace place_of_row(const AttentionParams& p, int kv_head, int row) {
  const int group = static_cast<int>(p.H_q / p.H_kv);
  return {int64_t{kv_head} * group + row % group, row / group};
}

// Copies one element at a time, where rows are not aligned to 16 bytes: complete at once.
template <class T>
DEVICE void copy_element(void* to, int i, const T* from, bool valid) {
  smem_store(static_cast<T*>(to) + i, valid ? load<T>(from + i) : T{});
}

// Which 16-bit column of a query lies at `position`, next to its neighbour position + 1: with 8-bit
// keys a lane's four codes, loaded as one word, are the two pairs of a product's operand.
template <class Tile>
DEVICE int column_at(int position) {
  if constexpr (Tile::kIsFloat || !kIsQuantised<typename Tile::Stored>) return position;
  const int block = position & ~63, step = position >> 4 & 3, half = position >> 3 & 1;
  const int pair = position >> 1 & 3;
  return block + 16 * pair + 4 * step + 2 * half + (position & 1);
}

// Rows [first_row, first_row + kRows) of a KV head's queries, zeros where there are none.
template <class Tile>
DEVICE void load_queries(const AttentionParams& p, bool aligned, int batch, int kv_head,
                         int first_row, int end_row) {
  using Query = typename Tile::Query;
  constexpr bool kInPairs = !Tile::kIsFloat && kIsQuantised<typename Tile::Stored>;
  constexpr int kUnit = kInPairs ? 2 : 16 / int{sizeof(Query)}, kUnits = Tile::kD / kUnit;
  const auto* query = static_cast<const Query*>(p.query) + batch * p.query_batch_stride;
  for (int i = thread_index(); i < Tile::kRows * kUnits; i += Tile::kThreads) {
    const int row = i / kUnits, position = i % kUnits * kUnit;
    const int byte = position * int{sizeof(Query)};
    unsigned char* const to =
        dynamic_smem() + chunk_at<Tile::kQueryRowBytes>(row, byte / 16) + byte % 16;
    const auto [head, token] = place_of_row(p, kv_head, first_row + row);
    const int column = column_at<Tile>(position);
    const Query* from = query + head * p.query_head_stride + token * p.query_token_stride + column;
    const bool valid = first_row + row < end_row;
    if (!aligned) {
      for (int k = 0; k < kUnit; ++k) copy_element(to, k, from, valid && column + k < p.D);
    } else if (kInPairs) {
      cp_async_4(smem_address(to), from, valid && column < p.D);
    } else {
      cp_async_16(smem_address(to), from, valid && column < p.D);
    }
  }
}

// Fetches tiles of keys, values and their scales into the ring of stages. Slots outside
// [first, end), and those of pages that do not exist, become zeros.
template <class Tile>
class CacheLoader {
  using Stored = typename Tile::Stored;

 public:
  DEVICE CacheLoader(const AttentionParams& p, bool key_aligned, bool value_aligned, int batch,
                     int kv_head, int first, int end)
      : p_(p),
        key_aligned_(key_aligned),
        value_aligned_(value_aligned),
        batch_(batch),
        kv_head_(kv_head),
        first_(first),
        end_(end) {}

  // Looks up the pages of a tile's slots, one step before fetch needs them.
  DEVICE void look_up(int tile) {
#pragma unroll
    for (int k = 0; k < kLaneSlots; ++k)
      row_[k] = row_of(tile * Tile::kKeys + 32 * k + lane_index());
  }

  // Of the tile that look_up saw.
  DEVICE void fetch(int tile, int stage_address) const {
    int64_t key_offset[kLaneSlots], value_offset[kLaneSlots];
#pragma unroll
    for (int k = 0; k < kLaneSlots; ++k) {
      const int slot = tile * Tile::kKeys + 32 * k + lane_index();
      const int64_t in_row =
          p_.block_table.pages ? slot % static_cast<int>(p_.block_table.page_size) : slot;
      key_offset[k] = row_[k] < 0 ? -1 : offset(p_.key, row_[k], in_row);
      value_offset[k] = row_[k] < 0 ? -1 : offset(p_.value, row_[k], in_row);
      if constexpr (kIsQuantised<Stored>) {
        const int scales = stage_address + Tile::kKeyBytes + Tile::kValueBytes;
        const int at = scales + (32 * k + lane_index()) * int{sizeof(float)};
        if (warp_index() == 0 && 32 * k + lane_index() < Tile::kKeys) {
          fetch_scale(p_.key.scales, at, row_[k], in_row);
          fetch_scale(p_.value.scales, at + Tile::kScaleBytes, row_[k], in_row);
        }
      }
    }
    copy_rows<Tile::kKeyRowBytes>(p_.key, key_aligned_, p_.D, key_offset, stage_address);
    copy_rows<Tile::kValueRowBytes>(p_.value, value_aligned_, p_.D_v, value_offset,
                                    stage_address + Tile::kKeyBytes);
  }

 private:
  // A lane knows the places of these slots; lanes that copy a row ask it.
  static constexpr int kLaneSlots = (Tile::kKeys + 31) / 32;

  // Batch row or page of a slot, or -1.
  DEVICE int row_of(int slot) const {
    if (slot < first_ || slot >= end_) return -1;
    const BlockTable& table = p_.block_table;
    if (!table.pages) return batch_;
    const int index = slot / static_cast<int>(table.page_size);
    const int page = load<int>(table.pages + batch_ * table.row_stride + index * table.page_stride);
    return page < table.num_pages ? page : -1;
  }

  DEVICE int64_t offset(const Cache& cache, int64_t row, int64_t slot) const {
    return row * cache.row_stride + kv_head_ * cache.head_stride + slot * cache.slot_stride;
  }

  DEVICE void fetch_scale(const Scales& scales, int at, int64_t row, int64_t slot) const {
    const float* from = scales.data;
    if (row >= 0) {
      from += row * scales.row_stride + kv_head_ * scales.head_stride + slot * scales.slot_stride;
    }
    cp_async_4(smem_address(dynamic_smem()) + at, from, row >= 0);
  }

  template <int kBytes>
  DEVICE void copy_rows(const Cache& cache, bool aligned, int64_t width,
                        const int64_t (&offsets)[kLaneSlots], int address) const {
    constexpr int kChunks = kBytes / 16, kLanes = kChunks < 8 ? kChunks : 8;  // a row's
    constexpr int kRowsAtOnce = Tile::kThreads / kLanes, kElements = 16 / int{sizeof(Stored)};
    const int own_chunk = thread_index() % kLanes;
#pragma unroll
    for (int rows = 0; rows < Tile::kKeys; rows += kRowsAtOnce) {
      const int row = rows + thread_index() / kLanes;
      const int64_t at = shfl(offsets[rows / 32], row % 32);
      if (kRowsAtOnce > Tile::kKeys && row >= Tile::kKeys) continue;
      const Stored* from =
          static_cast<const Stored*>(cache.data) + (at < 0 ? 0 : at) + own_chunk * kElements;
      const int left = at < 0 ? 0 : static_cast<int>(width) - own_chunk * kElements;
      const int to = address + chunk_at<kBytes>(row, own_chunk);
      if (aligned) {
#pragma unroll
        for (int chunk = 0; chunk < kChunks; chunk += kLanes) {
          if (kChunks % kLanes && own_chunk + chunk >= kChunks) continue;
          cp_async_16(smem_address(dynamic_smem()) + further<kBytes>(to, chunk),
                      from + chunk * kElements, chunk * kElements < left);
        }
      } else {
        for (int chunk = 0; own_chunk + chunk < kChunks; chunk += kLanes) {
          for (int k = chunk * kElements; k < (chunk + 1) * kElements; ++k) {
            copy_element(dynamic_smem() + further<kBytes>(to, chunk), k % kElements,
                         from + k / kElements * kElements, k < left);
          }
        }
      }
    }
  }

  const AttentionParams& p_;
  const bool key_aligned_, value_aligned_;
  const int batch_, kv_head_, first_, end_;
  int row_[kLaneSlots];
};

}  // namespace mqa::kernels::cuda
