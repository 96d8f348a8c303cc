// What attention_backward returns, from what its kernels computed.
#pragma once

#include "tensor_params.h"

namespace mqa {

AttentionGrads gradients(const BackwardCall& call, const Tensor& key, const Tensor& value,
                         const AttentionOptions& options);

}  // namespace mqa
