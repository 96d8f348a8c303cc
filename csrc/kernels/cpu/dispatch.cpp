// Run-time choice among the instruction sets that were compiled in.
#include <algorithm>

#include "isa.h"
#include "tile.h"

namespace mqa::kernels::cpu {

#define MQA_DECLARE_ISA(isa)                    \
  namespace isa {                               \
  extern const TileOps<float> float_tile_ops;   \
  extern const TileOps<double> double_tile_ops; \
  }
MQA_DECLARE_ISA(generic)
#ifdef __x86_64__
MQA_DECLARE_ISA(avx2)
MQA_DECLARE_ISA(avx512)
#endif

namespace {

Isa detect_isa() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    return Isa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
#endif
  return Isa::kGeneric;
}

const Isa machine_isa = detect_isa();
Isa isa_in_use = machine_isa;

}  // namespace

Isa current_isa() { return isa_in_use; }

void cap_isa(Isa cap) { isa_in_use = std::min(cap, machine_isa); }

template <>
const TileOps<float>& tile_ops<float>() {
#ifdef __x86_64__
  if (isa_in_use == Isa::kAvx512) return avx512::float_tile_ops;
  if (isa_in_use == Isa::kAvx2) return avx2::float_tile_ops;
#endif
  return generic::float_tile_ops;
}

template <>
const TileOps<double>& tile_ops<double>() {
#ifdef __x86_64__
  if (isa_in_use == Isa::kAvx512) return avx512::double_tile_ops;
  if (isa_in_use == Isa::kAvx2) return avx2::double_tile_ops;
#endif
  return generic::double_tile_ops;
}

}  // namespace mqa::kernels::cpu
