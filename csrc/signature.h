// The one place that spells out the ops' argument lists in C++. Kernels are written over structs of
// options; these adapters turn them into the flat functions that the dispatcher registers and
// calls.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <array>

#include "mqa/mqa.h"

namespace mqa {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

using OutAndLse = std::tuple<Tensor, Tensor>;
using AttentionGrads = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// What attention_backward() takes besides attention's arguments.
struct BackwardInputs {
  Tensor grad_out;
  OptionalTensor grad_lse;
  Tensor out, lse;
  std::array<bool, 5> output_mask;  // query, key, value, attn_mask, sinks
};

// An undefined tensor means none, as std::nullopt does.
inline OptionalTensor defined(const OptionalTensor& t) {
  return t && t->defined() ? t : std::nullopt;
}

// A kernel f(query, key, value, options) as the dispatcher wants it.
template <auto kernel>
auto flat_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                    const OptionalTensor& attn_mask, bool is_causal, std::optional<double> scale,
                    const OptionalTensor& seq_lens, const OptionalTensor& block_table,
                    c10::SymInt window_left, c10::SymInt window_right, double softcap,
                    const OptionalTensor& alibi_slopes, const OptionalTensor& sinks,
                    const OptionalTensor& key_scale, const OptionalTensor& value_scale) {
  return kernel(query, key, value,
                {defined(attn_mask), is_causal, scale, defined(seq_lens), defined(block_table),
                 std::move(window_left), std::move(window_right), softcap, defined(alibi_slopes),
                 defined(sinks), defined(key_scale), defined(value_scale)});
}

template <auto kernel>
AttentionGrads flat_attention_backward(
    const Tensor& grad_out, const OptionalTensor& grad_lse, const Tensor& out, const Tensor& lse,
    const Tensor& query, const Tensor& key, const Tensor& value, const OptionalTensor& attn_mask,
    bool is_causal, std::optional<double> scale, const OptionalTensor& seq_lens,
    const OptionalTensor& block_table, c10::SymInt window_left, c10::SymInt window_right,
    double softcap, const OptionalTensor& alibi_slopes, const OptionalTensor& sinks,
    const OptionalTensor& key_scale, const OptionalTensor& value_scale,
    std::array<bool, 5> output_mask) {
  return kernel({grad_out, grad_lse, out, lse, output_mask}, query, key, value,
                {defined(attn_mask), is_causal, scale, defined(seq_lens), defined(block_table),
                 std::move(window_left), std::move(window_right), softcap, defined(alibi_slopes),
                 defined(sinks), defined(key_scale), defined(value_scale)});
}

template <auto kernel>
void flat_kv_append(const Tensor& key_cache, const Tensor& value_cache, const Tensor& key,
                    const Tensor& value, const Tensor& positions, const OptionalTensor& block_table,
                    const OptionalTensor& key_scale, const OptionalTensor& value_scale) {
  kernel(key_cache, value_cache, key, value, positions,
         {defined(block_table), defined(key_scale), defined(value_scale)});
}

AttentionGrads attention_backward(const BackwardInputs& inputs, const Tensor& query,
                                  const Tensor& key, const Tensor& value,
                                  const AttentionOptions& options);

}  // namespace mqa
