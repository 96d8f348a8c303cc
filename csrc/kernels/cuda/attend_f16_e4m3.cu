#include "launch_attend.cuh"

namespace mqa::kernels::cuda {

template Status launch_attend<f16, e4m3>(const Plan&, const AttentionArgs&, Stream);

}  // namespace mqa::kernels::cuda
