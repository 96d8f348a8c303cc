// Run-time choice among the instruction sets that gradients were compiled for.
#include "backward_tile.h"
#include "isa.h"

namespace mqa::kernels::cpu {

#define MQA_DECLARE_ISA(isa)                            \
  namespace isa {                                       \
  extern const BackwardOps<float> float_backward_ops;   \
  extern const BackwardOps<double> double_backward_ops; \
  }
MQA_DECLARE_ISA(generic)
#ifdef __x86_64__
MQA_DECLARE_ISA(avx2)
MQA_DECLARE_ISA(avx512)
namespace amx {
extern const BackwardOps<float> bfloat16_backward_ops;
}
#endif

template <>
const BackwardOps<float>& backward_ops<float>([[maybe_unused]] const BackwardParams& p) {
#ifdef __x86_64__
  const Isa isa = current_isa();
  const bool all_bfloat16 = p.dtype == DType::kBFloat16 && p.key.dtype == DType::kBFloat16;
  if (isa >= Isa::kAmx && all_bfloat16) return amx::bfloat16_backward_ops;
  if (isa >= Isa::kAvx512) return avx512::float_backward_ops;
  if (isa >= Isa::kAvx2) return avx2::float_backward_ops;
#endif
  return generic::float_backward_ops;
}

template <>
const BackwardOps<double>& backward_ops<double>(const BackwardParams&) {
#ifdef __x86_64__
  const Isa isa = current_isa();
  if (isa >= Isa::kAvx512) return avx512::double_backward_ops;
  if (isa >= Isa::kAvx2) return avx2::double_backward_ops;
#endif
  return generic::double_backward_ops;
}

}  // namespace mqa::kernels::cpu
