#pragma once

#include "../params.h"
#include "stream.h"

namespace mqa::kernels::cuda {

// Enqueues the kernel that writes key and value rows into their caches at slots positions[b] + [0,
// T), as kernels::cpu::append does, to the same bits. All pointers are device pointers. Rows whose
// position or page lies outside the cache are not written: the host does not know them.
Status append(const AppendParams& params, Stream stream);

}  // namespace mqa::kernels::cuda
