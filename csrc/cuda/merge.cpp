#include "../kernels/cuda/merge.h"

#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "../library.h"
#include "../tensor_params.h"
#include "checks.h"
#include "device.h"

namespace mqa::cuda {
namespace {

constexpr size_t kMaxParts = kernels::cuda::kMaxMergeParts;

OutAndLse merge_in_one_launch(at::TensorList outs, at::TensorList lses, const Place& place) {
  std::vector<Tensor> inputs;
  std::vector<const void*> out_data, lse_data;
  for (size_t i = 0; i < outs.size(); ++i) {
    out_data.push_back(inputs.emplace_back(outs[i].contiguous()).const_data_ptr());
    lse_data.push_back(inputs.emplace_back(lses[i].contiguous()).const_data_ptr());
  }
  Tensor out = at::empty_like(outs[0], at::MemoryFormat::Contiguous);
  Tensor lse = at::empty_like(lses[0], at::MemoryFormat::Contiguous);
  check_status("merge", kernels::cuda::merge({.parts = static_cast<int64_t>(outs.size()),
                                              .rows = lse.numel(),
                                              .width = out.size(3),
                                              .dtype = kernel_dtype(out),
                                              .outs = out_data.data(),
                                              .lses = lse_data.data(),
                                              .out = out.data_ptr(),
                                              .lse = lse.data_ptr()},
                                             place.stream()));
  return {out, lse};
}

// Groups of parts first, in float32 so that nothing is rounded in between, then the groups'
// results.
OutAndLse merge_any(at::TensorList outs, at::TensorList lses, const Place& place) {
  if (outs.size() <= kMaxParts) return merge_in_one_launch(outs, lses, place);
  std::vector<Tensor> group_outs, group_lses;
  for (size_t begin = 0; begin < outs.size(); begin += kMaxParts) {
    const size_t count = std::min(kMaxParts, outs.size() - begin);
    std::vector<Tensor> parts;
    for (const Tensor& out : outs.slice(begin, count)) parts.push_back(out.to(at::kFloat));
    auto [out, lse] = merge_in_one_launch(parts, lses.slice(begin, count), place);
    group_outs.push_back(std::move(out));
    group_lses.push_back(std::move(lse));
  }
  const auto [out, lse] = merge_any(group_outs, group_lses, place);
  return {out.to(outs[0].scalar_type()), lse};
}

OutAndLse merge(at::TensorList outs, at::TensorList lses) {
  check_merge(outs, lses);
  check_not_float64("merge", "outs[0]", outs[0]);
  return merge_any(outs, lses, Place(outs[0]));
}

}  // namespace
}  // namespace mqa::cuda

TORCH_LIBRARY_IMPL(mqa, CUDA, m) {
  if (mqa::first_copy()) m.impl("merge", mqa::cuda::merge);
}
