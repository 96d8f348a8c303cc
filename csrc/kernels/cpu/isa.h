#pragma once

#include <cstdint>

namespace mqa::kernels::cpu {

// The instruction sets that tiles are compiled for, each with all that the ones before it have.
enum class Isa : uint8_t { kGeneric, kAvx2, kAvx512, kAvx512Bf16, kAmx };

// The last one that this machine has, up to the cap. The environment variable MQA_CPU_ISA sets the
// cap at first use; throws std::invalid_argument where it holds no name of an ISA.
Isa current_isa();

// As in MQA_CPU_ISA: generic, avx2, avx512, avx512_bf16, amx.
const char* isa_name(Isa isa);

// For tests: not to be called while kernels run.
void cap_isa(Isa cap);

}  // namespace mqa::kernels::cpu
