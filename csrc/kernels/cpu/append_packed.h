// Rows that become columns: of packed keys, where sixteen slots lie side by side.
#pragma once

#include "../params.h"
#include "transpose.h"

namespace mqa::kernels::cpu {
namespace {

static_assert(kPackedSlots == kTransposedRows);

// to[e][r] = rows[r][e] for `count` slots, of 16, and e < width.
template <class Stored>
void store_slots(const Stored* rows, int64_t stride, int64_t count, int64_t width, Stored* to) {
  const int64_t done = count == kPackedSlots ? transpose_rows(rows, stride, width, to) : 0;
  for (int64_t e = done; e < width; ++e) {
    for (int64_t r = 0; r < count; ++r) to[e * kPackedSlots + r] = rows[r * stride + e];
  }
}

}  // namespace
}  // namespace mqa::kernels::cpu
