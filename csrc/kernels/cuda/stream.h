// What the kernels' host functions take and return. The callers in csrc/cuda need no CUDA compiler
// for it, and the emulation has the same types.
#pragma once

struct CUstream_st;

namespace mqa::kernels::cuda {

using Stream = CUstream_st*;  // cudaStream_t
using Status = int;           // cudaError_t

inline constexpr Status kSuccess = 0;

}  // namespace mqa::kernels::cuda
