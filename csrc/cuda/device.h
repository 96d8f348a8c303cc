// What the adapters of this folder share: where a call runs, and what becomes of its status.
#pragma once

#include <c10/core/DeviceGuard.h>
#include <cuda_runtime_api.h>

#include "../kernels/cuda/stream.h"
#include "../signature.h"

namespace mqa::cuda {

// For the life of a call: a tensor's device is the current one, with the stream that is current
// there. Torch's CUDA libraries are reached through c10's registry, so that none has to be linked.
class Place {
 public:
  explicit Place(const Tensor& tensor) : guard_(tensor.device()) {
    const c10::impl::VirtualGuardImpl cuda(c10::DeviceType::CUDA);
    stream_ = static_cast<kernels::cuda::Stream>(cuda.getStream(tensor.device()).native_handle());
  }
  kernels::cuda::Stream stream() const { return stream_; }

 private:
  c10::OptionalDeviceGuard guard_;
  kernels::cuda::Stream stream_;
};

inline void check_status(const char* op, kernels::cuda::Status status) {
  if (status == kernels::cuda::kSuccess) return;
  cudaGetLastError();  // or the next call would report it again
  TORCH_CHECK(false, "mqa::", op,
              ": CUDA error: ", cudaGetErrorString(static_cast<cudaError_t>(status)));
}

}  // namespace mqa::cuda
