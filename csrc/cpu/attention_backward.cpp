#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../checks.h"
#include "../gradients.h"
#include "../kernels/cpu/backward.h"
#include "../library.h"
#include "threads.h"

namespace mqa::cpu {
namespace {

AttentionGrads attention_backward(const BackwardInputs& inputs, const Tensor& query,
                                  const Tensor& key, const Tensor& value,
                                  const AttentionOptions& options) {
  check_attention_backward(inputs, query, key, value, options);
  BackwardCall call = backward_call(inputs, query, key, value, options);
  check_attention_contents("attention_backward", key, call.forward.seq_lens, options.block_table);
  const Tensor workspace =
      at::empty({kernels::cpu::backward_workspace(call.params)}, query.options().dtype(at::kByte));
  call.params.workspace = workspace.data_ptr();
  kernels::cpu::attention_backward(call.params, aten_threads());
  return gradients(call, key, value, options);
}

}  // namespace
}  // namespace mqa::cpu

TORCH_LIBRARY_IMPL(mqa, CPU, m) {
  if (!mqa::first_copy()) return;
  m.impl("attention_backward", mqa::flat_attention_backward<mqa::cpu::attention_backward>);
}
