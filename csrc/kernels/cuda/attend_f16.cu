#include "launch_attend.cuh"

namespace mqa::kernels::cuda {

template Status launch_attend<f16, f16>(const Plan&, const AttentionArgs&, Stream);

}  // namespace mqa::kernels::cuda
