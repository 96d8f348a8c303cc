// How a block's work and its shared memory are laid out.
#pragma once

#include <type_traits>

#include "device.cuh"

namespace mqa::kernels::cuda {

struct e4m3 {  // float8_e4m3fn
  uint8_t bits;
};

template <class T>
inline constexpr bool kIsQuantised = sizeof(T) == 1;

// How a block's work and its shared memory are laid out. Addresses in shared memory are bytes from
// its start.
//   kD_, kD_v_     head_dims, padded
//   kRowWarps      warps side by side over rows
//   kRowGroups_    groups of 16 rows that a warp has
//   kValueWarps_   warps with the same rows, side by side over the columns of values
//   Query_         dtype of query, in which tensor cores multiply (float: fused multiply-adds)
//   Stored_        dtype of the cache
template <int kD_, int kD_v_, int kRowWarps, int kRowGroups_, int kValueWarps_, class Query_,
          class Stored_>
struct Tile {
  using Query = Query_;
  using Stored = Stored_;
  static constexpr int kD = kD_, kD_v = kD_v_;
  static constexpr int kRowGroups = kRowGroups_, kValueWarps = kValueWarps_;
  static constexpr int kRows = 16 * kRowWarps * kRowGroups;
  static constexpr int kThreads = 32 * kRowWarps * kValueWarps;
  static constexpr int kColumns = kD_v / kValueWarps;  // of values, a warp's

  static constexpr bool kIsFloat = std::is_same_v<Query, float>;
  // Weights times values' scales leave the range of float16: each row has a unit for them.
  static constexpr bool kHasUnits = kIsQuantised<Stored> && std::is_same_v<Query, f16>;

  static constexpr int kQueryRowBytes = kD * int{sizeof(Query)};
  static constexpr int kKeyRowBytes = kD * int{sizeof(Stored)};
  static constexpr int kValueRowBytes = kD_v * int{sizeof(Stored)};

  // Keys in a stage: about 16 KB, and not more scores than registers hold. For all numbers of rows
  // the same, so that a row's bits do not depend on how many there are.
  static constexpr int keys() {
    int keys = kD > 64 || kIsFloat ? 32 : 64;
    while (keys > (kIsFloat ? 8 : 16) && keys * (kKeyRowBytes + kValueRowBytes) > 16 * 1024) {
      keys /= 2;
    }
    return keys;
  }
  static constexpr int kKeys = keys();
  static constexpr int kKeyTiles = kKeys / 8;

  static constexpr int kQueryBytes = kRows * kQueryRowBytes;
  static constexpr int kKeyBytes = kKeys * kKeyRowBytes;
  static constexpr int kValueBytes = kKeys * kValueRowBytes;
  static constexpr int kScaleBytes = kIsQuantised<Stored> ? kKeys * int{sizeof(float)} : 0;
  static constexpr int kStageBytes = kKeyBytes + kValueBytes + 2 * kScaleBytes;
  // Devices have 99 KB for a block, and more.
  static constexpr int kStages = kQueryBytes + 3 * kStageBytes <= 96 * 1024 ? 3 : 2;
  static constexpr int kTotals = kQueryBytes + kStages * kStageBytes;  // address

  // Accumulators of a thread: weighted values, and a maximum and a sum for each row.
  static constexpr int kThreadTotals = kRowGroups * (kColumns / 8 * 4 + 4);

  static constexpr int smem_bytes(bool has_totals) {
    return kTotals + (has_totals ? kThreads * kThreadTotals * int{sizeof(float)} : 0);
  }

  // A thread's scores, and its part of the weighted values.
  using Scores = float[kRowGroups][kKeyTiles][4];
  using Out = float[kRowGroups][kColumns / 8][4];
};

// Where 16-byte chunk `chunk` of a row lies, in a matrix whose rows have kBytes: eight rows' same
// chunks, and two rows' four neighbouring ones, lie in different banks.
template <int kBytes>
DEVICE int chunk_at(int row, int chunk) {
  static_assert(kBytes % 64 == 0);
  const int swizzle = kBytes % 128 ? row >> 1 & 3 : (row & 1) << 2 | (row >> 1 & 3);
  return row * kBytes + ((chunk ^ swizzle) << 4);
}

// The place of the chunk `chunks` further on, if the numbers of the two have no bit in common.
template <int kBytes>
DEVICE int further(int at, int chunks) {
  constexpr int kBits = kBytes % 128 ? 2 : 3;  // that the swizzle may touch
  const int low = chunks & ((1 << kBits) - 1);
  return (at ^ low << 4) + ((chunks - low) << 4);
}

}  // namespace mqa::kernels::cuda
