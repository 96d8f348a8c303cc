// How the keys of a sequence are cut. Pure functions of the sequence's own length and of the call's
// heads and tokens, so that a row's bits do not depend on its batch or on the device.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../host_device.h"

namespace mqa::kernels::cuda {

inline constexpr int kMinChunkKeys = 64;
// Enough for every multiprocessor of a large device, two warps each, at batch 1.
inline constexpr int kMaxChunks = 256;
// Results of chunks are folded in groups of this many, then the groups. A block takes a chunk, or a
// whole group where there is work enough: the order of the sums is the same.
inline constexpr int kGroupChunks = 8;

// What keeps a device busy beside chunks: the KV heads, times 64 of their G * T rows.
MQA_HOST_DEVICE constexpr int64_t split_tiles(int64_t H_kv, int64_t rows) {
  return H_kv * ((rows + 63) / 64);
}

// Chunks that a long sequence is cut into.
MQA_HOST_DEVICE constexpr int wanted_chunks(int64_t tiles) {
  int chunks = kMaxChunks;
  while (chunks > 1 && chunks * tiles > kMaxChunks) chunks /= 2;
  return chunks;
}

// Keys in a chunk of a sequence of `seq_len`: a power of two.
MQA_HOST_DEVICE constexpr int64_t chunk_keys(int64_t seq_len, int64_t tiles) {
  const int chunks = wanted_chunks(tiles);
  int64_t keys = kMinChunkKeys;
  while (keys * chunks < seq_len) keys *= 2;
  return keys;
}

// The most chunks that a sequence of up to S keys is cut into.
constexpr int64_t most_chunks(int64_t S, int64_t tiles) {
  const int64_t smallest = (S + kMinChunkKeys - 1) / kMinChunkKeys;
  return std::clamp<int64_t>(smallest, 1, wanted_chunks(tiles));
}

}  // namespace mqa::kernels::cuda
