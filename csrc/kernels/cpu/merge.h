#pragma once

#include "../params.h"

namespace mqa::kernels::cpu {

// Merges attention over disjoint sets of keys into attention over their union:
// lse = log sum_i exp(lse_i), out = sum_i exp(lse_i - lse) out_i. A part with lse -inf adds
// nothing, whatever its out holds; all parts -inf give zeros and -inf.
void merge(const MergeParams& params, const Threads& threads);

}  // namespace mqa::kernels::cpu
