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
  check_attention_contents(op, key, call.seq_lens, options.block_table);
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
