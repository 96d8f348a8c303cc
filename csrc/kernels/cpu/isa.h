#pragma once

namespace mqa::kernels::cpu {

// The instruction sets that tiles are compiled for, each with all that the ones before it have.
enum class Isa { kGeneric, kAvx2, kAvx512 };

// The last one that this machine has, up to the cap.
Isa current_isa();

// For tests: not to be called while kernels run.
void cap_isa(Isa cap);

}  // namespace mqa::kernels::cpu
