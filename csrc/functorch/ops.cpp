// vmap: attention goes through PyTorch's loop over the batch; the others would fail obscurely
// there.
#include <torch/library.h>

#include "../library.h"

namespace {

void refuse_vmap(const c10::OperatorHandle& op, torch::jit::Stack*) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      false, op.schema().name(),
      " cannot be used inside torch.func.vmap: give it a larger batch instead");
}

}  // namespace

TORCH_LIBRARY_IMPL(mqa, FuncTorchBatched, m) {
  if (!mqa::first_copy()) return;
  for (const char* op : {"attention_lse", "merge", "kv_append"}) {
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<refuse_vmap>());
  }
}
