#include "launch_backward.cuh"

namespace mqa::kernels::cuda {

template Status launch_backward<float>(const BackwardArgs&, Stream);

}  // namespace mqa::kernels::cuda
