// ATen's thread pool for the torch-free kernels.
#pragma once

#include <ATen/Parallel.h>

#include "../kernels/params.h"

namespace mqa {

inline kernels::Threads aten_threads() {
  kernels::Threads threads;
  threads.count = at::in_parallel_region() ? 1 : at::get_num_threads();
  threads.parallel_for = [](int64_t count, kernels::RangeBody body) {
    at::parallel_for(0, count, 1, body);
  };
  return threads;
}

}  // namespace mqa
