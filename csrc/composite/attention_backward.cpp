// Gradients of attention, recomputed with ATen from the saved lse, over matrices [B, H_q, T, S].
//
// With p = exp(score - lse), dp = grad_out value^T and z = sum_j p dp - grad_lse:
//   grad_value = p^T grad_out
//   d_score    = p (dp - z)                       (the gradient of an added mask)
//   d_sink     = -exp(sink - lse) z
// and from d_score through softcap and scale to grad_query and grad_key. Query heads that share a
// KV head are folded into rows, so the sum over them is part of the matrix product.
//
// One function for all devices. It reads nothing back from one: lengths and page numbers out of
// range, which only CPU calls of attention refuse, are clamped as CUDA kernels do.
#include <ATen/ATen.h>
#include <ATen/ExpandUtils.h>
#include <torch/library.h>

#include <cmath>

#include "../checks.h"
#include "../library.h"
#include "../tensor_params.h"

namespace mqa::composite {
namespace {

// All entries of a block table in a row. Unused ones may hold anything; what they read is masked.
Tensor page_ids(const Tensor& block_table, const Tensor& pool) {
  return block_table.reshape(-1).to(at::kLong).clamp(0, pool.size(0) - 1);
}

// Page pool [num_pages, H_kv, page_size, D] -> [B, H_kv, S, D].
Tensor gather_pages(const Tensor& pool, const Tensor& block_table) {
  const int64_t B = block_table.size(0), pages = block_table.size(1);
  return pool.index_select(0, page_ids(block_table, pool))
      .view({B, pages, pool.size(1), pool.size(2), pool.size(3)})
      .transpose(1, 2)
      .reshape({B, pool.size(1), pages * pool.size(2), pool.size(3)});
}

// The transpose of gather_pages: sums gradients into the pages they were read from.
Tensor scatter_pages(const Tensor& grad, const Tensor& pool, const Tensor& block_table) {
  const int64_t B = block_table.size(0), pages = block_table.size(1);
  const Tensor rows = grad.view({B, pool.size(1), pages, pool.size(2), pool.size(3)})
                          .transpose(1, 2)
                          .reshape({B * pages, pool.size(1), pool.size(2), pool.size(3)});
  return at::zeros(pool.sizes(), grad.options()).index_add(0, page_ids(block_table, pool), rows);
}

// The cache as the scores see it: dequantised, unpaged, zero beyond the valid slots.
Tensor dense_cache(const Tensor& cache, const OptionalTensor& scale,
                   const OptionalTensor& block_table, const Tensor& valid, at::ScalarType dtype) {
  Tensor dense = cache.to(dtype);
  if (scale) {
    dense = dense * (scale->dim() == 1 ? scale->view({1, -1, 1, 1}) : scale->unsqueeze(-1));
  }
  if (block_table) dense = gather_pages(dense, *block_table);
  return dense.masked_fill(valid.logical_not().transpose(2, 3), 0);
}

AttentionGrads attention_backward(const BackwardInputs& inputs, const Tensor& query,
                                  const Tensor& key, const Tensor& value,
                                  const AttentionOptions& o) {
  check_attention("attention_backward", query, key, value, o);
  const auto dtype = accumulation_dtype(query);
  const int64_t B = query.size(0), H_q = query.size(1), T = query.size(2), D = query.size(3);
  const int64_t H_kv = key.size(1), G = H_q / H_kv, S = cache_slots(key, o.block_table);
  const auto fold = [&](const Tensor& t) { return t.reshape({B, H_kv, G * T, t.size(-1)}); };
  const auto unfold = [&](const Tensor& t) { return t.view({B, H_q, T, t.size(-1)}); };
  const double scale = score_scale(o, D);

  const Tensor slots = at::arange(S, query.options().dtype(at::kLong)).view({1, 1, 1, S});
  const Tensor lens =
      (o.seq_lens ? o.seq_lens->to(at::kLong).clamp(0, S) : at::full({B}, S, slots.options()))
          .view({B, 1, 1, 1});
  const Tensor diagonal = lens - T + at::arange(T, slots.options()).view({1, 1, T, 1});
  const Tensor valid = slots < lens;
  Tensor visible = valid.expand({B, 1, T, S});
  const auto left = o.window_left.guard_int(__FILE__, __LINE__);
  const auto right = o.window_right.guard_int(__FILE__, __LINE__);
  if (o.is_causal) visible = visible & (slots <= diagonal);
  if (left >= 0) visible = visible & (diagonal - slots <= left);
  if (right >= 0) visible = visible & (slots - diagonal <= right);

  const Tensor q = fold(query.to(dtype));
  const Tensor k = dense_cache(key, o.key_scale, o.block_table, valid, dtype);
  const Tensor v = dense_cache(value, o.value_scale, o.block_table, valid, dtype);

  Tensor scores = unfold(at::matmul(q, k.transpose(2, 3)) * scale);
  Tensor capped;
  if (o.softcap > 0) scores = capped = at::tanh(scores / o.softcap) * o.softcap;
  if (o.alibi_slopes) {
    const Tensor slopes = o.alibi_slopes->to(dtype).reshape({-1, H_q, 1, 1});
    scores = scores - slopes * (diagonal - slots).abs();
  }
  if (o.attn_mask && o.attn_mask->scalar_type() == at::kBool) visible = visible & *o.attn_mask;
  if (o.attn_mask && o.attn_mask->scalar_type() != at::kBool) {
    scores = scores + *o.attn_mask;
    visible = visible & (*o.attn_mask != -INFINITY);
  }
  const Tensor hidden = visible.logical_not();
  const Tensor lse = inputs.lse.unsqueeze(-1);
  const Tensor p = at::exp(scores - lse).masked_fill(hidden, 0);

  const Tensor grad_out = fold(inputs.grad_out.to(dtype));
  const Tensor dp = unfold(at::matmul(grad_out, v.transpose(2, 3))).masked_fill(hidden, 0);
  Tensor z = (p * dp).sum(-1, /*keepdim=*/true);
  if (inputs.grad_lse) z = z - inputs.grad_lse->unsqueeze(-1);
  const Tensor d_score = p * (dp - z);
  Tensor d_dot = d_score * scale;
  if (capped.defined()) d_dot = d_dot * (1 - (capped / o.softcap).square());
  d_dot = fold(d_dot);

  const Tensor none = at::empty({0}, query.options());
  const auto& wanted = inputs.output_mask;
  const auto cache_grad = [&](const Tensor& grad, const Tensor& cache) {
    return (o.block_table ? scatter_pages(grad, cache, *o.block_table) : grad)
        .to(cache.scalar_type());
  };
  return {
      wanted[0] ? unfold(at::matmul(d_dot, k)).to(query.scalar_type()) : none,
      wanted[1] ? cache_grad(at::matmul(d_dot.transpose(2, 3), q), key) : none,
      wanted[2] ? cache_grad(at::matmul(fold(p).transpose(2, 3), grad_out), value) : none,
      wanted[3] ? at::sum_to(d_score, o.attn_mask->sizes()).to(o.attn_mask->scalar_type()) : none,
      wanted[4] ? (at::exp(o.sinks->to(dtype).view({1, H_q, 1, 1}) - lse) * -z)
                      .sum(at::IntArrayRef{0, 2, 3})
                      .to(o.sinks->scalar_type())
                : none};
}

}  // namespace
}  // namespace mqa::composite

TORCH_LIBRARY_IMPL(mqa, CompositeExplicitAutograd, m) {
  if (!mqa::first_copy()) return;
  m.impl("attention_backward", mqa::flat_attention_backward<mqa::composite::attention_backward>);
}
