// The dispatch key CUDA of a build without CUDA: calls fail with the reason.
#include <torch/library.h>

#include "../library.h"

namespace {

void refuse_cuda(const c10::OperatorHandle& op, torch::jit::Stack*) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, op.schema().name(),
                              ": expected tensors on cpu, since mqa was built without CUDA, got "
                              "some on cuda: build it where "
                              "nvcc is on the PATH, with a torch that has CUDA");
}

}  // namespace

TORCH_LIBRARY_IMPL(mqa, CUDA, m) {
  if (!mqa::first_copy()) return;
  for (const char* op :
       {"attention", "attention_lse", "attention_backward", "merge", "kv_append"}) {
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<refuse_cuda>());
  }
}
