#include <ATen/ATen.h>
#include <torch/library.h>

#include "../checks.h"
#include "../gradients.h"
#include "../kernels/cuda/backward.h"
#include "../library.h"
#include "checks.h"
#include "device.h"

namespace mqa::cuda {
namespace {

// A cache of 8 bits, which has no gradient itself, as the kernels want it.
Tensor dequantised(const Tensor& cache, const OptionalTensor& scale, const Tensor& query) {
  if (!scale) return cache;
  const Tensor factors = scale->dim() == 1 ? scale->view({1, -1, 1, 1}) : scale->unsqueeze(-1);
  return (cache.to(at::kFloat) * factors).to(query.scalar_type());
}

AttentionGrads attention_backward(const BackwardInputs& inputs, const Tensor& query,
                                  const Tensor& key, const Tensor& value,
                                  AttentionOptions options) {
  constexpr const char* kOp = "attention_backward";
  constexpr int64_t kMost = kernels::cuda::kMaxBackwardHeadDim;
  check_attention_backward(inputs, query, key, value, options);
  check_not_float64(kOp, "query", query);
  check_head_dims(kOp, query, value, kMost, kMost);
  const Tensor keys = dequantised(key, std::exchange(options.key_scale, {}), query);
  const Tensor values = dequantised(value, std::exchange(options.value_scale, {}), query);

  BackwardCall call = backward_call(inputs, query, keys, values, options);
  kernels::BackwardParams& p = call.params;
  check_counts(kOp, p);
  if (checks_contents())
    check_attention_contents(kOp, key, call.forward.seq_lens, options.block_table);
  if (call.grad_mask.defined()) {  // without atomics: what the mask broadcasts is added up later
    call.grad_mask = at::zeros({p.B, p.H_q, p.T, p.S}, call.grad_mask.options());
    p.grad_mask = {
        call.grad_mask.data_ptr(), kernels::DType::kFloat32, p.H_q * p.T * p.S, p.T * p.S, p.S, 1};
  }
  const Place place(query);
  const Tensor workspace =
      at::empty({kernels::cuda::backward_workspace(p)}, query.options().dtype(at::kByte));
  p.workspace = workspace.data_ptr();
  check_status(kOp, kernels::cuda::attention_backward(p, place.stream()));
  return gradients(call, keys, values, options);
}

}  // namespace
}  // namespace mqa::cuda

TORCH_LIBRARY_IMPL(mqa, CUDA, m) {
  if (!mqa::first_copy()) return;
  m.impl("attention_backward", mqa::flat_attention_backward<mqa::cuda::attention_backward>);
}
