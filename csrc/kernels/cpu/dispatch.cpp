// Run-time choice among the instruction sets that were compiled in.
#include "isa.h"
#include "tile.h"

namespace mqa::kernels::cpu {

#define MQA_DECLARE_ISA(isa)               \
  namespace isa {                          \
  extern const TileOps<float> float_ops;   \
  extern const TileOps<double> double_ops; \
  }
MQA_DECLARE_ISA(generic)
#ifdef __x86_64__
MQA_DECLARE_ISA(avx2)
MQA_DECLARE_ISA(avx512)
namespace avx512_bf16 {
extern const TileOps<float> bfloat16_ops;
}
namespace amx {
extern const TileOps<float> bfloat16_ops;
}
#endif

template <>
const TileOps<float>& tile_ops<float>([[maybe_unused]] const AttentionParams& p) {
#ifdef __x86_64__
  const Isa isa = current_isa();
  // Keys and values of 8 bits become bfloat16, too.
  if (p.dtype == DType::kBFloat16) {
    if (isa >= Isa::kAmx) return amx::bfloat16_ops;
    if (isa >= Isa::kAvx512Bf16) return avx512_bf16::bfloat16_ops;
  }
  if (isa >= Isa::kAvx512) return avx512::float_ops;
  if (isa >= Isa::kAvx2) return avx2::float_ops;
#endif
  return generic::float_ops;
}

template <>
const TileOps<double>& tile_ops<double>(const AttentionParams&) {
#ifdef __x86_64__
  const Isa isa = current_isa();
  if (isa >= Isa::kAvx512) return avx512::double_ops;
  if (isa >= Isa::kAvx2) return avx2::double_ops;
#endif
  return generic::double_ops;
}

}  // namespace mqa::kernels::cpu
