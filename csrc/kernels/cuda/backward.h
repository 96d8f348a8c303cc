// The CUDA kernels of attention's gradients: what csrc/cuda calls. All pointers in the params are
// device pointers.
#pragma once

#include "../params.h"
#include "stream.h"

namespace mqa::kernels::cuda {

inline constexpr int64_t kMaxBackwardHeadDim = 256;

// Bytes of device memory for params.workspace.
int64_t backward_workspace(const BackwardParams& params);

// Enqueues the kernels that write the gradients of query, key, value and mask, and row_sums; the
// same bits every time. Key and value have query's dtype. grad_mask, where it is wanted, is not
// broadcast: [B, H_q, T, S] of zeros by its strides. The caller has checked all shapes and dtypes;
// seq_lens and page numbers are clamped on the device.
Status attention_backward(const BackwardParams& params, Stream stream);

}  // namespace mqa::kernels::cuda
