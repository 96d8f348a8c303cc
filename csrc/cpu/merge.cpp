#include "../kernels/cpu/merge.h"

#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "../checks.h"
#include "../library.h"
#include "../tensor_params.h"
#include "threads.h"

namespace mqa::cpu {
namespace {

OutAndLse merge(at::TensorList outs, at::TensorList lses) {
  check_merge(outs, lses);
  std::vector<Tensor> inputs;
  std::vector<const void*> out_data, lse_data;
  for (size_t i = 0; i < outs.size(); ++i) {
    out_data.push_back(inputs.emplace_back(outs[i].contiguous()).const_data_ptr());
    lse_data.push_back(inputs.emplace_back(lses[i].contiguous()).const_data_ptr());
  }
  Tensor out = at::empty_like(outs[0], at::MemoryFormat::Contiguous);
  Tensor lse = at::empty_like(lses[0], at::MemoryFormat::Contiguous);
  kernels::cpu::merge({.parts = static_cast<int64_t>(outs.size()),
                       .rows = lse.numel(),
                       .width = out.size(3),
                       .dtype = kernel_dtype(out),
                       .outs = out_data.data(),
                       .lses = lse_data.data(),
                       .out = out.data_ptr(),
                       .lse = lse.data_ptr()},
                      aten_threads());
  return {out, lse};
}

}  // namespace
}  // namespace mqa::cpu

TORCH_LIBRARY_IMPL(mqa, CPU, m) {
  if (mqa::first_copy()) m.impl("merge", mqa::cpu::merge);
}
