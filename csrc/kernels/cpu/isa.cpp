#include "isa.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>

#ifdef __x86_64__
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mqa::kernels::cpu {
namespace {

constexpr Isa kAll[] = {Isa::kGeneric, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16, Isa::kAmx};

#ifdef __x86_64__
#if defined(MQA_EMULATED_AMX)
bool has_tiles() { return true; }
#else
bool has_tiles() {
  unsigned a = 0, b = 0, c = 0, d = 0;  // gcc 12 knows no name for AMX
  __get_cpuid_count(7, 0, &a, &b, &c, &d);
  const bool has_amx_bf16 = (d >> 22 & 1) && (d >> 24 & 1);
  // Linux saves the tile registers only of processes that have asked for it.
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return has_amx_bf16 && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

Isa machine_isa() {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::kGeneric;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq")) {
    return Isa::kAvx2;
  }
  if (!__builtin_cpu_supports("avx512bf16")) return Isa::kAvx512;
  return has_tiles() ? Isa::kAmx : Isa::kAvx512Bf16;
}
#else
Isa machine_isa() { return Isa::kGeneric; }
#endif

Isa isa_from_environment() {
  const char* wanted = std::getenv("MQA_CPU_ISA");
  if (!wanted || !*wanted) return Isa::kAmx;
  std::string names;
  for (Isa isa : kAll) {
    if (std::string(isa_name(isa)) == wanted) return isa;
    names += std::string(names.empty() ? "" : ", ") + isa_name(isa);
  }
  throw std::invalid_argument("MQA_CPU_ISA: expected one of " + names + ", got '" + wanted + "'");
}

Isa& isa_in_use() {
  static Isa isa = std::min(machine_isa(), isa_from_environment());
  return isa;
}

}  // namespace

Isa current_isa() { return isa_in_use(); }

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kGeneric:
      return "generic";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
    case Isa::kAmx:
      return "amx";
  }
  return "";
}

void cap_isa(Isa cap) { isa_in_use() = std::min(cap, machine_isa()); }

}  // namespace mqa::kernels::cpu
