// Writes rows of keys and values into their caches, converting or quantising on the way.
//
// A few lanes of a warp, a power of two, have a row: as many as its vectors of 16 bytes. Time: the
// bytes read and written. A quantised row is read twice, the second time from L1.
#pragma once

#include "../formats.h"
#include "../slots.h"
#include "device.cuh"

namespace mqa::kernels::cuda {

inline constexpr int kAppendWarps = 4;

struct AppendArgs {
  AppendParams params;
  int first_side, sides;  // key is 0, value 1
  int row_lanes;
};

template <class Format>
inline constexpr float kLargestCode = std::is_same_v<Format, Int8> ? 127 : 448;

template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Elements {
  T x[kCount];
};

// Where a token goes.
struct Target {
  SlotPlace place;
  bool exists;
};
DEVICE Target target_of(const AppendParams& p, int64_t batch, int64_t token) {
  const int64_t position = load<int64_t>(p.positions + batch);
  const BlockTable& table = p.block_table;
  // A sequence whose tokens do not all fit stays as it was.
  if (position < 0 || position > p.capacity - p.T) return {{}, false};
  const int64_t slot = position + token;
  if (!table.pages) return {{batch, slot}, true};
  const int64_t at = batch * table.row_stride + slot / table.page_size * table.page_stride;
  const int64_t page = load<int32_t>(table.pages + at);
  return {{page, slot % table.page_size}, page >= 0 && page < table.num_pages};
}

DEVICE uint32_t bits_of(float x) { return as_bits(x); }
DEVICE uint32_t bits_of(uint16_t x) { return x; }

// The largest magnitude among the lanes' vectors of a row: in the order of bits, NaN above
// infinity.
template <class From, int kCount>
DEVICE float largest_magnitude(const typename From::Storage* from, int64_t width, int lane,
                               int lanes) {
  using Storage = typename From::Storage;
  constexpr uint32_t kMagnitude = sizeof(Storage) == 4 ? 0x7fffffff : 0x7fff;
  uint32_t largest = 0;
  for (int64_t i = lane * kCount; i < width; i += lanes * kCount) {
    const auto row = load<Elements<Storage, kCount>>(from + i);
#pragma unroll
    for (Storage x : row.x) {
      largest = std::max(largest, bits_of(x) & kMagnitude);
    }
  }
  for (int lanes_apart = 1; lanes_apart < lanes; lanes_apart *= 2) {
    largest = std::max(largest, shfl_xor(largest, lanes_apart));
  }
  if constexpr (sizeof(Storage) == 4) return as_float(largest);
  return From::widen(static_cast<Storage>(largest));
}

template <class From, class To, int kCount>
KERNEL(kAppendWarps * 32)
append_rows(const GRID_CONSTANT AppendArgs a) {
  using Storage = typename From::Storage;
  using Stored = typename To::Storage;
  const AppendParams& p = a.params;
  const int warp_rows = 32 / a.row_lanes, lane = lane_index() % a.row_lanes;
  const int64_t warp = int64_t{block_index()} * kAppendWarps + warp_index();
  int64_t index = warp * warp_rows + lane_index() / a.row_lanes;
  const int64_t token = index % p.T;
  index /= p.T;
  const int64_t head = index % p.H_kv;
  index /= p.H_kv;
  const int64_t batch = index % p.B, number = index / p.B;

  // Lanes without a row go on, with none of its elements: the others need them for shuffles.
  const AppendParams::Side& side = a.first_side + number == 0 ? p.key : p.value;
  Target target{};
  if (number < a.sides) target = target_of(p, batch, token);
  const int64_t width = target.exists ? side.width : 0;
  const auto* from = static_cast<const Storage*>(side.source) + batch * side.source_batch_stride +
                     head * side.source_head_stride + token * side.source_token_stride;
  auto* to = static_cast<Stored*>(side.cache.data) + row_offset(side.cache, target.place, head);

  float divisor = 1;
  if constexpr (sizeof(Stored) == 1) {
    float scale =
        largest_magnitude<From, kCount>(from, width, lane, a.row_lanes) / kLargestCode<To>;
    if (width == 0) return;
    float* const scale_place = &scale_at(side.cache, target.place, head);
    if (side.scale_per_head) {
      scale = load<float>(scale_place);
    } else if (lane == 0) {
      store(scale_place, scale);
    }
    divisor = scale == 0 ? 1 : scale;  // a row of zeros has scale 0 and codes 0
  }
  for (int64_t i = lane * kCount; i < width; i += a.row_lanes * kCount) {
    const auto row = load<Elements<Storage, kCount>>(from + i);
    Elements<Stored, kCount> converted;
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      if constexpr (std::is_same_v<From, To>) {
        converted.x[k] = row.x[k];
      } else {
        const float x = From::widen(row.x[k]);
        converted.x[k] = To::narrow(sizeof(Stored) == 1 ? x / divisor : x);
      }
    }
    store(to + i, converted);
  }
}

}  // namespace mqa::kernels::cuda
