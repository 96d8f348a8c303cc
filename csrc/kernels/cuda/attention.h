// The CUDA kernels: what csrc/cuda calls. All pointers in the params are device pointers.
#pragma once

#include "../params.h"
#include "stream.h"

namespace mqa::kernels::cuda {

inline constexpr int64_t kMaxHeadDim = 576, kMaxValueHeadDim = 512;

// What the choice of a kernel depends on, beside the params. It never changes a result's bits.
struct Device {
  int multiprocessors;
  int smem_per_block;      // bytes, opt-in
  int compute_capability;  // 10 * major + minor
};

// Bytes of device memory for the partial results of a call; 0 where it makes none.
int64_t attention_workspace(const AttentionParams& params, const Device& device);

// Enqueues the kernels that write params.out and, where it is not null, params.lse. Formula and
// options: include/mqa/mqa.h. The caller has checked all shapes and dtypes. seq_lens are clamped to
// [0, S] and page numbers to the pool on the device, since the host does not know them.
Status attention(const AttentionParams& params, const Device& device, void* workspace,
                 Stream stream);

}  // namespace mqa::kernels::cuda
