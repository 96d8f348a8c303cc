// Which keys a query row may see, apart from attn_mask.
#pragma once

#include <algorithm>

#include "host_device.h"
#include "params.h"

namespace mqa::kernels {

struct KeyRange {
  int64_t begin, end;
  MQA_HOST_DEVICE bool empty() const { return begin >= end; }
};

namespace {  // internal linkage: every ISA that includes this compiles its own copy

inline KeyRange intersect(KeyRange a, KeyRange b) {
  return {std::max(a.begin, b.begin), std::min(a.end, b.end)};
}

inline int64_t seq_len(const AttentionParams& p, int64_t batch) {
  return p.seq_lens ? p.seq_lens[batch] : p.S;
}

// The key that query `token` stands at: the last of T queries stands at the last of seq_len keys.
MQA_HOST_DEVICE inline int64_t diagonal_at(const AttentionParams& p, int64_t seq_len,
                                           int64_t token) {
  return seq_len - p.T + token;
}

MQA_HOST_DEVICE inline KeyRange visible_of(const AttentionParams& p, int64_t seq_len,
                                           int64_t token) {
  const int64_t at = diagonal_at(p, seq_len, token);
  KeyRange keys{0, seq_len};
  if (p.window_left >= 0) keys.begin = std::max(keys.begin, at - p.window_left);
  if (p.window_right >= 0) keys.end = std::min(keys.end, at + p.window_right + 1);
  if (p.is_causal) keys.end = std::min(keys.end, at + 1);
  return keys;
}

inline int64_t diagonal(const AttentionParams& p, int64_t batch, int64_t token) {
  return diagonal_at(p, seq_len(p, batch), token);
}

inline KeyRange visible_keys(const AttentionParams& p, int64_t batch, int64_t token) {
  return visible_of(p, seq_len(p, batch), token);
}

// All keys that some query in [first_token, last_token] sees: both bounds grow with the token.
inline KeyRange visible_keys(const AttentionParams& p, int64_t batch, int64_t first_token,
                             int64_t last_token) {
  return {visible_keys(p, batch, first_token).begin, visible_keys(p, batch, last_token).end};
}

}  // namespace
}  // namespace mqa::kernels
