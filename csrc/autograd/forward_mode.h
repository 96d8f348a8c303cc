#pragma once

#include <torch/csrc/autograd/functions/utils.h>

namespace mqa::autograd {

// Without this a tangent would be dropped in silence.
inline void refuse_forward_mode(const char* op, at::TensorList tensors) {
  for (const at::Tensor& t : tensors) {
    TORCH_CHECK_NOT_IMPLEMENTED(!torch::autograd::isFwGradDefined(t), "mqa::", op,
                                " has no forward-mode derivative: use reverse mode");
  }
}

}  // namespace mqa::autograd
