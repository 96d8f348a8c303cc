#include "../kernels/cpu/attention.h"

#include <torch/library.h>

#include "../checks.h"
#include "../library.h"
#include "../tensor_params.h"
#include "threads.h"

namespace mqa::cpu {
namespace {

AttentionCall run(const char* op, const Tensor& query, const Tensor& key, const Tensor& value,
                  const AttentionOptions& options, bool want_lse) {
  check_attention(op, query, key, value, options);
  AttentionCall call = attention_call(query, key, value, options, want_lse);
  const int64_t slots = call.params.S;
  if (call.seq_lens.defined()) check_seq_lens(op, call.seq_lens, slots);
  if (options.block_table) {
    for (int64_t b = 0; b < call.params.B; ++b) {
      const int64_t used = call.params.seq_lens ? call.params.seq_lens[b] : slots;
      check_pages(op, *options.block_table, b, 0, used, key.size(2), key.size(0));
    }
  }
  kernels::cpu::attention(call.params, aten_threads());
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
}  // namespace mqa::cpu

TORCH_LIBRARY_IMPL(mqa, CPU, m) {
  if (!mqa::first_copy()) return;
  m.impl("attention", mqa::flat_attention<mqa::cpu::attention>);
  m.impl("attention_lse", mqa::flat_attention<mqa::cpu::attention_lse>);
}
