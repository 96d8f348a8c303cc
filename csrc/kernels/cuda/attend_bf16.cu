#include "launch_attend.cuh"

namespace mqa::kernels::cuda {

template Status launch_attend<bf16, bf16>(const Plan&, const AttentionArgs&, Stream);

}  // namespace mqa::kernels::cuda
