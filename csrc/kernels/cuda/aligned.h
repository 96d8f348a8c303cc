// Which tensors can be copied sixteen bytes at a time.
#pragma once

#include <initializer_list>

#include "../params.h"

namespace mqa::kernels::cuda {

// `elements`: strides and the width of rows.
inline bool is_aligned(const void* data, std::initializer_list<int64_t> elements, DType dtype) {
  const auto divides = [](uint64_t bytes) { return bytes % 16 == 0; };
  bool aligned = divides(reinterpret_cast<uintptr_t>(data));
  for (int64_t count : elements) aligned &= divides(count * size_of(dtype));
  return aligned;
}

inline bool is_aligned(const Cache& cache, int64_t width) {
  return is_aligned(cache.data, {cache.row_stride, cache.head_stride, cache.slot_stride, width},
                    cache.dtype);
}

}  // namespace mqa::kernels::cuda
