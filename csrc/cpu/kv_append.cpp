#include <torch/library.h>

#include "../checks.h"
#include "../kernels/cpu/append.h"
#include "../library.h"
#include "../tensor_params.h"
#include "threads.h"

namespace mqa::cpu {
namespace {

void kv_append(const Tensor& key_cache, const Tensor& value_cache, const Tensor& key,
               const Tensor& value, const Tensor& positions, const AppendOptions& options) {
  check_kv_append(key_cache, value_cache, key, value, positions, options);
  check_append_memory(key_cache, value_cache, options);
  const AppendCall call = append_call(key_cache, value_cache, key, value, positions, options);
  check_append_contents(key_cache, key, call.positions, options);
  kernels::cpu::append(call.params, aten_threads());
}

}  // namespace
}  // namespace mqa::cpu

TORCH_LIBRARY_IMPL(mqa, CPU, m) {
  if (mqa::first_copy()) m.impl("kv_append", mqa::flat_kv_append<mqa::cpu::kv_append>);
}
