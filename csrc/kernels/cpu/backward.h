#pragma once

#include "../params.h"

namespace mqa::kernels::cpu {

// Gradients of attention: query, key, value and mask, and row_sums for those of sinks. Same bits
// whatever the number of threads.
void attention_backward(const BackwardParams& params, const Threads& threads);

// Bytes that it works in, besides a few megabytes for each thread.
int64_t backward_workspace(const BackwardParams& params);

}  // namespace mqa::kernels::cpu
