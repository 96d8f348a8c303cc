// Multi-Query, Grouped-Query and Multi-Head Attention over a KV cache: the C++ API.
//
// The functions call the operators torch.ops.mqa.* through PyTorch's dispatcher, so autograd and
// autocast apply as in Python. Errors are c10::Error (c10::ValueError for values out of range,
// c10::NotImplementedError for what does not exist yet) and name the operator, the argument, what
// was expected and what was got; they are raised before anything is written.
//
// Letters: B batch, H_q query heads, H_kv KV heads (H_q % H_kv == 0), T new tokens, S cache slots,
// D head_dim of query and key, D_v head_dim of value.
//
// Sources: MQA, Shazeer 2019 (arXiv 1911.02150); GQA, Ainslie et al. 2023 (arXiv 2305.13245);
// online softmax, Milakov and Gimelshein 2018 (arXiv 1805.02867); ALiBi, Press et al. 2021 (arXiv
// 2108.12409).
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <optional>
#include <tuple>

#include "mqa/export.h"

namespace mqa {

// Options of attention(); the defaults are plain attention over all S slots.
struct AttentionOptions {
  // Broadcasts to [B, H_q, T, S]. bool: true attends. float32 or query's dtype: added to the scaled
  // scores, -inf hides.
  std::optional<at::Tensor> attn_mask = {};
  // Query t of T sees keys j <= seq_len - T + t: aligned bottom right. For T == S this is what
  // scaled_dot_product_attention does; for T < S that aligns top left.
  bool is_causal = false;
  // Factor of the scores; default 1 / sqrt(D).
  std::optional<double> scale = {};
  // [B], int32 or int64: how many slots of each row are valid, in [0, S]. Others are never read.
  std::optional<at::Tensor> seq_lens = {};
  // [B, pages], int32: key and value are pools [num_pages, H_kv, page_size, D], slot j of row b
  // lies in page block_table[b][j / page_size]. Entries that seq_lens does not reach are never
  // read.
  std::optional<at::Tensor> block_table = {};
  // How many keys before and after the diagonal j = seq_len - T + t are seen; -1: all.
  c10::SymInt window_left = -1;
  c10::SymInt window_right = -1;
  // Replaces a score x by softcap * tanh(x / softcap), before masks; 0: none.
  double softcap = 0;
  // [H_q] or [B, H_q], float32 or query's dtype: subtracts slope * |(seq_len - T + t) - j|.
  std::optional<at::Tensor> alibi_slopes = {};
  // [H_q], float32 or query's dtype: a logit per head that joins the softmax's denominator.
  std::optional<at::Tensor> sinks = {};
  // float32 factors of int8 and float8_e4m3fn keys and values: [H_kv], or per token [B, H_kv, S]
  // (for pools [num_pages, H_kv, page_size]).
  std::optional<at::Tensor> key_scale = {};
  std::optional<at::Tensor> value_scale = {};
};

// softmax(scale * query key^T + masks) value.
//
// query [B, H_q, T, D]: float32, bfloat16, float16 (accumulated in float32) or float64.
// key [B, H_kv, S, D], value [B, H_kv, S, D_v]: query's dtype, int8 or float8_e4m3fn. Any strides
// are read in place as long as the last dimension is contiguous; otherwise that tensor is copied
// once. Returns [B, H_q, T, D_v] in query's dtype, contiguous. A row that sees no key is zero.
//
// Packed keys, [B, H_kv, S / 16, D, 16] with the last two dimensions contiguous (in a pool
// [num_pages, H_kv, page_size / 16, D, 16]), have sixteen slots side by side, as the CPU reads them
// fastest for up to 8 rows G * T, G = H_q / H_kv. The result is the same. Elsewhere, and for
// gradients, a copy in order is made.
//
// Differentiable in query, key, value, a float attn_mask and sinks, in memory that grows with T + S
// (a mask's gradient has the mask's size). On CUDA up to a head_dim of 256. Second derivatives,
// forward-mode derivatives, and those of slopes and scales raise.
//
// The bits of a row depend on its query, the keys and values it sees and the options only: not on
// the batch, the thread count, the cache's capacity or pages, or how many tokens come in one call;
// on CUDA on that last where it, or the sequence, is long (docs/design.md has the limits).
MQA_API at::Tensor attention(const at::Tensor& query, const at::Tensor& key,
                             const at::Tensor& value, const AttentionOptions& options = {});

// attention() and the natural logarithm of its softmax denominator (sink included), [B, H_q, T],
// float32 (float64 for float64); -inf where no key is seen.
MQA_API std::tuple<at::Tensor, at::Tensor> attention_lse(const at::Tensor& query,
                                                         const at::Tensor& key,
                                                         const at::Tensor& value,
                                                         const AttentionOptions& options = {});

// Merges results of attention_lse() over disjoint sets of keys into the result over their union.
// outs: [B, H_q, T, D_v] each, lses: [B, H_q, T] each; a part with lse -inf is neutral.
MQA_API std::tuple<at::Tensor, at::Tensor> merge(at::TensorList outs, at::TensorList lses);

// What kv_append() takes besides the tensors.
struct AppendOptions {
  std::optional<at::Tensor> block_table = {};
  // Written with one scale per token and head, or read where they are [H_kv]; see AttentionOptions.
  std::optional<at::Tensor> key_scale = {};
  std::optional<at::Tensor> value_scale = {};
};

// Writes key [B, H_kv, T, D] and value [B, H_kv, T, D_v] into the caches, in place, at slots
// positions[b] + [0, T) of each row b. positions [B]: int32 or int64, within the capacity. Rows are
// converted to the caches' dtype, or quantised where it is int8 or float8_e4m3fn. On CPU key_cache
// may be packed, see attention(). Has no gradient.
MQA_API void kv_append(const at::Tensor& key_cache, const at::Tensor& value_cache,
                       const at::Tensor& key, const at::Tensor& value, const at::Tensor& positions,
                       const AppendOptions& options = {});

}  // namespace mqa
