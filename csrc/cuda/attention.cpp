#include "../kernels/cuda/attention.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../library.h"
#include "../tensor_params.h"
#include "checks.h"
#include "device.h"

namespace mqa::cuda {
namespace {

kernels::cuda::Device device_of(const char* op, const Tensor& tensor) {
  const auto attribute = [&](cudaDeviceAttr attribute) {
    int value = 0;
    check_status(op, cudaDeviceGetAttribute(&value, attribute, tensor.get_device()));
    return value;
  };
  return {.multiprocessors = attribute(cudaDevAttrMultiProcessorCount),
          .smem_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          .compute_capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor) +
                                attribute(cudaDevAttrComputeCapabilityMinor)};
}

AttentionCall run(const char* op, const Tensor& query, const Tensor& key, const Tensor& value,
                  const AttentionOptions& options, bool want_lse) {
  check_attention(op, query, key, value, options);
  check_not_float64(op, "query", query);
  check_head_dims(op, query, value, kernels::cuda::kMaxHeadDim, kernels::cuda::kMaxValueHeadDim);
  AttentionCall call = attention_call(query, key, value, options, want_lse);
  check_counts(op, call.params);
  if (checks_contents()) check_attention_contents(op, key, call.seq_lens, options.block_table);

  const Place place(query);
  const kernels::cuda::Device device = device_of(op, query);
  const int64_t bytes = kernels::cuda::attention_workspace(call.params, device);
  const Tensor workspace = at::empty({bytes}, query.options().dtype(at::kByte));
  check_status(op,
               kernels::cuda::attention(call.params, device, workspace.data_ptr(), place.stream()));
  return call;
}

Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value,
                 const AttentionOptions& options) {
  return run("attention", query, key, value, options, /*want_lse=*/false).out;
}

OutAndLse attention_lse(const Tensor& query, const Tensor& key, const Tensor& value,
                        const AttentionOptions& options) {
  const AttentionCall call = run("attention_lse", query, key, value, options, /*want_lse=*/true);
  return {call.out, call.lse};
}

}  // namespace
}  // namespace mqa::cuda

TORCH_LIBRARY_IMPL(mqa, CUDA, m) {
  if (!mqa::first_copy()) return;
  m.impl("attention", mqa::flat_attention<mqa::cuda::attention>);
  m.impl("attention_lse", mqa::flat_attention<mqa::cuda::attention_lse>);
}
