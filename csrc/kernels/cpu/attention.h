// The CPU kernels: what csrc/cpu calls.
#pragma once

#include "../params.h"

namespace mqa::kernels::cpu {

// Writes params.out and, where it is not null, params.lse. Formula and options: include/mqa/mqa.h.
// The caller has checked all shapes, seq_lens and the table entries that seq_lens make use of.
void attention(const AttentionParams& params, const Threads& threads);

}  // namespace mqa::kernels::cpu
