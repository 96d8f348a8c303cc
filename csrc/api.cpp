// The public functions and attention_backward: calls through the dispatcher.
#include "signature.h"

namespace mqa {
namespace {

template <class Signature>
auto find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

template <class Op>
auto call_attention(const Op& op, const Tensor& query, const Tensor& key, const Tensor& value,
                    const AttentionOptions& o) {
  return op.call(query, key, value, o.attn_mask, o.is_causal, o.scale, o.seq_lens, o.block_table,
                 o.window_left, o.window_right, o.softcap, o.alibi_slopes, o.sinks, o.key_scale,
                 o.value_scale);
}

}  // namespace

Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value,
                 const AttentionOptions& options) {
  static const auto op = find_op<decltype(flat_attention<attention>)>("mqa::attention");
  return call_attention(op, query, key, value, options);
}

OutAndLse attention_lse(const Tensor& query, const Tensor& key, const Tensor& value,
                        const AttentionOptions& options) {
  static const auto op = find_op<decltype(flat_attention<attention_lse>)>("mqa::attention_lse");
  return call_attention(op, query, key, value, options);
}

AttentionGrads attention_backward(const BackwardInputs& inputs, const Tensor& query,
                                  const Tensor& key, const Tensor& value,
                                  const AttentionOptions& o) {
  static const auto op =
      find_op<decltype(flat_attention_backward<attention_backward>)>("mqa::attention_backward");
  return op.call(inputs.grad_out, inputs.grad_lse, inputs.out, inputs.lse, query, key, value,
                 o.attn_mask, o.is_causal, o.scale, o.seq_lens, o.block_table, o.window_left,
                 o.window_right, o.softcap, o.alibi_slopes, o.sinks, o.key_scale, o.value_scale,
                 inputs.output_mask);
}

OutAndLse merge(at::TensorList outs, at::TensorList lses) {
  static const auto op = find_op<decltype(merge)>("mqa::merge");
  return op.call(outs, lses);
}

void kv_append(const Tensor& key_cache, const Tensor& value_cache, const Tensor& key,
               const Tensor& value, const Tensor& positions, const AppendOptions& o) {
  static const auto op = find_op<decltype(flat_kv_append<kv_append>)>("mqa::kv_append");
  op.call(key_cache, value_cache, key, value, positions, o.block_table, o.key_scale, o.value_scale);
}

}  // namespace mqa
