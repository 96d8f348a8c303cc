#pragma once

#include "../params.h"

namespace mqa::kernels::cpu {

// Writes key and value rows into their caches at slots positions[b] + [0, T), converting to the
// cache's dtype. Quantised caches: scale = max |x| / largest code, per token and head, is written
// beside the codes round(x / scale); with scale_per_head the given scale is used instead.
// The caller has checked positions and the table entries that they make use of.
void append(const AppendParams& params, const Threads& threads);

}  // namespace mqa::kernels::cpu
