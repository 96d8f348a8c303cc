#include "launch_backward.cuh"

namespace mqa::kernels::cuda {

template Status launch_backward<bf16>(const BackwardArgs&, Stream);

}  // namespace mqa::kernels::cuda
