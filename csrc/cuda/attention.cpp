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

void check_implemented(const char* op, const Tensor& query, const Tensor& value) {
  check_not_float64(op, "query", query);
  const auto check_size = [op](const char* name, const Tensor& t, int64_t most) {
    TORCH_CHECK_NOT_IMPLEMENTED(t.size(-1) <= most, "mqa::", op, ": expected ", name,
                                ".size(-1) <= ", most, " on CUDA, got ", t.size(-1));
  };
  check_size("query", query, kernels::cuda::kMaxHeadDim);
  check_size("value", value, kernels::cuda::kMaxValueHeadDim);
}

// The kernels count a sequence's slots, and a KV head's rows, in int.
void check_counts(const char* op, const kernels::AttentionParams& p) {
  constexpr int64_t kMost = int64_t{1} << 30;
  TORCH_CHECK_NOT_IMPLEMENTED(p.S <= kMost, "mqa::", op, ": expected at most ", kMost,
                              " slots in a sequence's cache on CUDA, got ", p.S);
  TORCH_CHECK_NOT_IMPLEMENTED(p.H_q / p.H_kv * p.T <= kMost, "mqa::", op, ": expected at most ",
                              kMost, " query rows for a KV head on CUDA, got ",
                              p.H_q / p.H_kv * p.T);
}

AttentionCall run(const char* op, const Tensor& query, const Tensor& key, const Tensor& value,
                  const AttentionOptions& options, bool want_lse) {
  check_attention(op, query, key, value, options);
  check_implemented(op, query, value);
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
