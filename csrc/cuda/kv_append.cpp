#include <torch/library.h>

#include "../kernels/cuda/append.h"
#include "../library.h"
#include "../tensor_params.h"
#include "checks.h"
#include "device.h"

namespace mqa::cuda {
namespace {

void kv_append(const Tensor& key_cache, const Tensor& value_cache, const Tensor& key,
               const Tensor& value, const Tensor& positions, const AppendOptions& options) {
  check_kv_append(key_cache, value_cache, key, value, positions, options);
  check_not_float64("kv_append", "key_cache", key_cache);
  check_not_float64("kv_append", "key", key);
  check_append_memory(key_cache, value_cache, options);
  TORCH_CHECK_NOT_IMPLEMENTED(!is_packed(key_cache),
                              "mqa::kv_append: expected key_cache.dim() == 4 ",
                              "on CUDA (packed keys are for the CPU), got 5");
  const AppendCall call = append_call(key_cache, value_cache, key, value, positions, options);
  if (checks_contents()) check_append_contents(key_cache, key, call.positions, options);

  const Place place(key_cache);
  check_status("kv_append", kernels::cuda::append(call.params, place.stream()));
}

}  // namespace
}  // namespace mqa::cuda

TORCH_LIBRARY_IMPL(mqa, CUDA, m) {
  if (mqa::first_copy()) m.impl("kv_append", mqa::flat_kv_append<mqa::cuda::kv_append>);
}
