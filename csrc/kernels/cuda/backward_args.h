// What the kernels of gradients get, and how a call is divided into blocks.
#pragma once

#include <algorithm>

#include "../params.h"
#include "device.cuh"

namespace mqa::kernels::cuda {

struct BackwardArgs {
  BackwardParams params;
  bool query_aligned, key_aligned, value_aligned, grad_out_aligned;  // rows to 16 bytes
  int row_tiles, key_tiles;                                          // of a KV head
  int segments;  // that the tiles of rows are dealt out to
  float* sums;   // gradients of the cache by segment: [B, H_kv, segments, S, D + D_v]
};

// Rows or keys that a block has, and those that it streams past them at a time.
struct BackwardShape {
  int own, streamed;
};

// `head_dim`: 64, 128 or 256.
constexpr BackwardShape backward_shape(int head_dim, bool is_float) {
  if (head_dim == 64) return {64, is_float ? 32 : 64};
  if (head_dim == 128) return {64, is_float ? 16 : 32};
  return {32, is_float ? 8 : 32};
}

constexpr int backward_head_dim(int64_t D, int64_t D_v) {
  const int64_t widest = std::max(D, D_v);
  return widest <= 64 ? 64 : widest <= 128 ? 128 : 256;
}

// A sequence's keys alone are too few blocks for a device: segments of its rows make up for it. A
// function of the call's shape but not of the batch, so that this changes no bit.
inline constexpr int64_t kWantedBlocks = 128;

constexpr int64_t segments_of(int64_t H_kv, int64_t key_tiles, int64_t streamed_tiles) {
  const int64_t wanted = kWantedBlocks / std::max<int64_t>(H_kv * key_tiles, 1);
  return std::clamp<int64_t>(wanted, 1, std::max<int64_t>(streamed_tiles, 1));
}

// One function for each dtype, so that they compile side by side.
template <class Query>
Status launch_backward(const BackwardArgs& args, Stream stream);

}  // namespace mqa::kernels::cuda
