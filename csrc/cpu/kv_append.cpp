#include <torch/library.h>

#include "../checks.h"
#include "../kernels/cpu/append.h"
#include "../library.h"
#include "../tensor_params.h"
#include "threads.h"

namespace mqa::cpu {
namespace {

// One scale per head is read, one per token is written.
void check_scale(const char* name, const OptionalTensor& scale, bool per_head) {
  if (per_head) check_head_scale(name, *scale);
  if (scale && !per_head) check_writable(name, *scale, /*contiguous_rows=*/false);
}

void kv_append(const Tensor& key_cache, const Tensor& value_cache, const Tensor& key,
               const Tensor& value, const Tensor& positions, const AppendOptions& options) {
  check_kv_append(key_cache, value_cache, key, value, positions, options);
  check_writable("key_cache", key_cache, /*contiguous_rows=*/true);
  check_writable("value_cache", value_cache, /*contiguous_rows=*/true);
  const AppendCall call = append_call(key_cache, value_cache, key, value, positions, options);
  const int64_t T = call.params.T;
  check_positions(call.positions, T, cache_slots(key_cache, options.block_table));
  if (options.block_table) {
    for (int64_t b = 0; b < call.params.B; ++b) {
      const int64_t first = call.params.positions[b];
      check_pages("kv_append", *options.block_table, b, first, first + T, key_cache.size(2),
                  key_cache.size(0));
    }
  }
  check_scale("key_scale", options.key_scale, call.params.key.scale_per_head);
  check_scale("value_scale", options.value_scale, call.params.value.scale_per_head);
  kernels::cpu::append(call.params, aten_threads());
}

}  // namespace
}  // namespace mqa::cpu

TORCH_LIBRARY_IMPL(mqa, CPU, m) {
  if (mqa::first_copy()) m.impl("kv_append", mqa::flat_kv_append<mqa::cpu::kv_append>);
}
