// With weights w_i = exp(lse_i - lse): d out_i = w_i g, d lse_i = w_i (g . (out_i - out) + g_lse).
#include <ATen/ATen.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include <cmath>

#include "../library.h"
#include "../signature.h"
#include "forward_mode.h"
#include "node.h"

namespace mqa::autograd {
namespace {

using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// Inputs are all outs, then all lses.
struct MergeBackward : torch::autograd::Node {
  std::vector<SavedVariable> inputs;
  SavedVariable out, lse;

  std::string name() const override { return "MqaMergeBackward"; }

  void release_variables() override {
    for (SavedVariable& input : inputs) input.reset_data();
    out.reset_data();
    lse.reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    const auto self = shared_from(this);
    const size_t parts = inputs.size() / 2;
    const Tensor total = lse.unpack(self), total_out = out.unpack(self);
    variable_list result(inputs.size());
    for (size_t i = 0; i < parts; ++i) {
      const Tensor part_out = inputs[i].unpack(), part_lse = inputs[parts + i].unpack();
      const Tensor weight = at::exp(part_lse - total).masked_fill(part_lse == -INFINITY, 0);
      if (grads[0].defined()) {
        const Tensor grad = grads[0].to(weight.scalar_type()) * weight.unsqueeze(-1);
        result[i] = grad.to(part_out.scalar_type());
        // A part that adds nothing may hold anything.
        const Tensor distance = (part_out - total_out).masked_fill((weight == 0).unsqueeze(-1), 0);
        result[parts + i] = (grad * distance).sum(-1);
      }
      if (grads[1].defined()) {
        const Tensor grad = grads[1] * weight;
        result[parts + i] = result[parts + i].defined() ? result[parts + i] + grad : grad;
      }
    }
    return result;
  }
};

OutAndLse merge(at::TensorList outs, at::TensorList lses) {
  variable_list inputs(outs.begin(), outs.end());
  inputs.insert(inputs.end(), lses.begin(), lses.end());
  refuse_forward_mode("merge", inputs);
  const auto forward = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return mqa::merge(outs, lses);
  };
  if (!torch::autograd::compute_requires_grad(inputs)) return forward();

  const auto node = make_node<MergeBackward>();
  node->set_next_edges(torch::autograd::collect_next_edges(inputs));
  for (const Tensor& input : inputs) node->inputs.emplace_back(input, /*is_output=*/false);
  const auto [out, lse] = forward();
  torch::autograd::set_history({out, lse}, node);
  node->out = SavedVariable(out, /*is_output=*/true);
  node->lse = SavedVariable(lse, true);
  return {out, lse};
}

}  // namespace
}  // namespace mqa::autograd

TORCH_LIBRARY_IMPL(mqa, Autograd, m) {
  if (mqa::first_copy()) m.impl("merge", mqa::autograd::merge);
}
