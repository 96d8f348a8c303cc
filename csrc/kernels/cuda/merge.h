#pragma once

#include "../params.h"
#include "stream.h"

namespace mqa::kernels::cuda {

// More parts have to be merged in several calls.
inline constexpr int kMaxMergeParts = 64;

// Enqueues the kernel for kernels::cpu::merge's formula. params.outs and params.lses are arrays in
// host memory, of device pointers, with at most kMaxMergeParts entries.
Status merge(const MergeParams& params, Stream stream);

}  // namespace mqa::kernels::cuda
