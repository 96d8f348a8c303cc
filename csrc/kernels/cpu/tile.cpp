// The tiles of one instruction set, which MQA_ISA names.
#if defined(MQA_AMX)
#include "matrix_engine.h"
#else
#include "vector_engine.h"
#endif

namespace mqa::kernels::cpu::MQA_ISA {

#if defined(MQA_AMX)
extern const TileOps<float> bfloat16_ops = kMatrixOps;
#elif defined(__AVX512BF16__)
extern const TileOps<float> bfloat16_ops = kVectorOps<PairProducts<BFloat16Bits> >;
#else
extern const TileOps<float> float_ops = kVectorOps<PlainProducts<float> >;
extern const TileOps<double> double_ops = kVectorOps<PlainProducts<double> >;
#endif

}  // namespace mqa::kernels::cpu::MQA_ISA
