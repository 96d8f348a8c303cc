// Shapes of the results, with symbolic sizes: what torch.compile and torch.export trace through.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "../checks.h"
#include "../library.h"
#include "../tensor_params.h"

namespace mqa::meta {
namespace {

Tensor empty_out(const Tensor& query, const Tensor& value) {
  return at::empty_symint(
      {query.sym_size(0), query.sym_size(1), query.sym_size(2), value.sym_size(3)},
      query.options());
}

Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value,
                 const AttentionOptions& options) {
  check_attention("attention", query, key, value, options);
  return empty_out(query, value);
}

OutAndLse attention_lse(const Tensor& query, const Tensor& key, const Tensor& value,
                        const AttentionOptions& options) {
  check_attention("attention_lse", query, key, value, options);
  return {empty_out(query, value),
          at::empty_symint({query.sym_size(0), query.sym_size(1), query.sym_size(2)},
                           query.options().dtype(accumulation_dtype(query)))};
}

AttentionGrads attention_backward(const BackwardInputs& inputs, const Tensor& query,
                                  const Tensor& key, const Tensor& value,
                                  const AttentionOptions& o) {
  check_attention_backward(inputs, query, key, value, o);
  const auto grad = [&](int i, const OptionalTensor& t) {
    if (!inputs.output_mask[i]) return at::empty({0}, query.options());
    return at::empty_like(*t, at::MemoryFormat::Contiguous);
  };
  return {grad(0, query), grad(1, key), grad(2, value), grad(3, o.attn_mask), grad(4, o.sinks)};
}

}  // namespace
}  // namespace mqa::meta

TORCH_LIBRARY_IMPL(mqa, Meta, m) {
  if (!mqa::first_copy()) return;
  m.impl("attention", mqa::flat_attention<mqa::meta::attention>);
  m.impl("attention_lse", mqa::flat_attention<mqa::meta::attention_lse>);
  m.impl("attention_backward", mqa::flat_attention_backward<mqa::meta::attention_backward>);
}
