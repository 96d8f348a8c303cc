// The gradients' tiles of one instruction set, which MQA_ISA names.
#if defined(MQA_AMX)
#include "matrix_sums.h"
#else
#include "vector_sums.h"
#endif

namespace mqa::kernels::cpu::MQA_ISA {

#if defined(MQA_AMX)
extern const BackwardOps<float> bfloat16_backward_ops{
    Differentiate<MatrixSums>::scratch_size, differentiate_by_matrices, MatrixSums::kPadding};
#else
template <class Acc>
constexpr BackwardOps<Acc> kOps{Differentiate<VectorSums<Acc> >::scratch_size,
                                differentiate<VectorSums<Acc> >, VectorSums<Acc>::kPadding};
extern const BackwardOps<float> float_backward_ops = kOps<float>;
extern const BackwardOps<double> double_backward_ops = kOps<double>;
#endif

}  // namespace mqa::kernels::cpu::MQA_ISA
