#include "gradients.h"

#include <ATen/ATen.h>
#include <ATen/ExpandUtils.h>

#include <cmath>

namespace mqa {
namespace {

// Sums gradients [B, H_kv, S, D] into the pages that the slots lie in. Entries of the table that
// are not in use may hold anything: what they add are zeros.
Tensor scatter_pages(const Tensor& grad, const Tensor& pool, const Tensor& block_table) {
  const int64_t B = block_table.size(0), pages = block_table.size(1);
  const Tensor rows = grad.view({B, pool.size(1), pages, pool.size(2), pool.size(3)})
                          .transpose(1, 2)
                          .reshape({B * pages, pool.size(1), pool.size(2), pool.size(3)});
  const Tensor ids = block_table.reshape(-1).to(at::kLong).clamp(0, pool.size(0) - 1);
  return at::zeros(pool.sizes(), grad.options()).index_add(0, ids, rows).to(pool.scalar_type());
}

Tensor sinks_grad(const BackwardCall& call, const Tensor& sinks) {
  const Tensor sink = call.forward.sinks.view({1, -1, 1});
  const Tensor weight = at::exp(sink - call.lse).masked_fill(call.lse == -INFINITY, 0);
  return (weight * -call.row_sums).sum(at::IntArrayRef{0, 2}).to(sinks.scalar_type());
}

}  // namespace

AttentionGrads gradients(const BackwardCall& call, const Tensor& key, const Tensor& value,
                         const AttentionOptions& o) {
  const auto cache_grad = [&](const Tensor& grad, const Tensor& cache) {
    return grad.defined() && o.block_table ? scatter_pages(grad, cache, *o.block_table) : grad;
  };
  const auto or_none = [&](const Tensor& grad) {
    return grad.defined() ? grad : at::empty({0}, call.grad_out.options());
  };
  Tensor mask_grad, sink_grad;
  if (call.grad_mask.defined()) {
    mask_grad = at::sum_to(call.grad_mask, o.attn_mask->sizes()).to(o.attn_mask->scalar_type());
  }
  if (call.wants_sinks) sink_grad = sinks_grad(call, *o.sinks);
  return {or_none(call.grad_query), or_none(cache_grad(call.grad_key, key)),
          or_none(cache_grad(call.grad_value, value)), or_none(mask_grad), or_none(sink_grad)};
}

}  // namespace mqa
