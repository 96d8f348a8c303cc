// Differentiable attention. The nodes are written by hand: torch::autograd::Function does not work
// under torch.func.grad.
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include "../checks.h"
#include "../library.h"
#include "../signature.h"
#include "../tensor_params.h"
#include "forward_mode.h"
#include "node.h"

namespace mqa::autograd {
namespace {

using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

Tensor value_or_undefined(const OptionalTensor& t) { return t.value_or(Tensor()); }

OptionalTensor if_defined(const Tensor& t) {
  return t.defined() ? OptionalTensor(t) : std::nullopt;
}

// AttentionOptions whose tensors are saved the way autograd wants them: it detects later writes.
class SavedOptions {
 public:
  void save(const AttentionOptions& o) {
    scalars_ = {.is_causal = o.is_causal,
                .scale = o.scale,
                .window_left = o.window_left,
                .window_right = o.window_right,
                .softcap = o.softcap};
    for (size_t i = 0; i < kTensors.size(); ++i) {
      tensors_[i] = SavedVariable(value_or_undefined(o.*kTensors[i]), /*is_output=*/false);
    }
  }
  AttentionOptions unpack() const {
    AttentionOptions o = scalars_;
    for (size_t i = 0; i < kTensors.size(); ++i) o.*kTensors[i] = if_defined(tensors_[i].unpack());
    return o;
  }
  void release() {
    for (SavedVariable& tensor : tensors_) tensor.reset_data();
  }

 private:
  static constexpr std::array kTensors = {
      &AttentionOptions::attn_mask,    &AttentionOptions::seq_lens, &AttentionOptions::block_table,
      &AttentionOptions::alibi_slopes, &AttentionOptions::sinks,    &AttentionOptions::key_scale,
      &AttentionOptions::value_scale};
  AttentionOptions scalars_;
  std::array<SavedVariable, kTensors.size()> tensors_;
};

// Gradients of (query, key, value, attn_mask, sinks) from those of (out, lse).
struct AttentionBackward : torch::autograd::Node {
  SavedVariable query, key, value, out, lse;
  SavedOptions options;

  std::string name() const override { return "MqaAttentionBackward"; }

  void release_variables() override {
    for (SavedVariable* saved : {&query, &key, &value, &out, &lse}) saved->reset_data();
    options.release();
  }

  variable_list apply(variable_list&& grads) override {
    const auto self = shared_from(this);
    const Tensor out_ = out.unpack(self);
    BackwardInputs inputs{grads[0].defined() ? grads[0] : at::zeros_like(out_),
                          if_defined(grads[1]),
                          out_,
                          lse.unpack(self),
                          {}};
    for (size_t i = 0; i < inputs.output_mask.size(); ++i) {
      inputs.output_mask[i] = task_should_compute_output(i);
    }
    const auto [query_grad, key_grad, value_grad, mask_grad, sinks_grad] =
        attention_backward(inputs, query.unpack(), key.unpack(), value.unpack(), options.unpack());
    variable_list result{query_grad, key_grad, value_grad, mask_grad, sinks_grad};
    for (size_t i = 0; i < result.size(); ++i) {
      if (!inputs.output_mask[i]) result[i] = Tensor();
    }
    return result;
  }
};

bool requires_grad(const OptionalTensor& t) { return t && t->requires_grad(); }

OptionalTensor if_quantized(const Tensor& cache) {
  return is_quantized(cache) ? OptionalTensor(cache) : std::nullopt;
}

void check_differentiable(const char* op, const Tensor& query, const Tensor& key,
                          const Tensor& value, const AttentionOptions& o) {
  for (const auto& [name, tensor] :
       {std::pair<const char*, OptionalTensor>{"alibi_slopes", o.alibi_slopes},
        {"key_scale", o.key_scale},
        {"value_scale", o.value_scale},
        {"key", if_quantized(key)},
        {"value", if_quantized(value)}}) {
    TORCH_CHECK_NOT_IMPLEMENTED(!(at::GradMode::is_enabled() && requires_grad(tensor)), "mqa::", op,
                                ": ", name, " has no gradient: detach it");
  }
  refuse_forward_mode(
      op, {query, key, value, value_or_undefined(o.attn_mask), value_or_undefined(o.sinks)});
}

template <class Forward>
auto below_autograd(const Forward& forward) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return forward();
}

// attention_lse with its node; nothing when no gradient is wanted.
std::optional<OutAndLse> differentiable(const char* op, const Tensor& query, const Tensor& key,
                                        const Tensor& value, const AttentionOptions& options) {
  check_differentiable(op, query, key, value, options);
  const Tensor mask = value_or_undefined(options.attn_mask);
  const Tensor sinks = value_or_undefined(options.sinks);
  if (!torch::autograd::compute_requires_grad(query, key, value, mask, sinks)) return std::nullopt;
  if (is_packed(key)) {
    check_attention(op, query, key, value, options);  // before its shape is another one
    return differentiable(op, query, unpacked(key), value, options);
  }

  const auto node = make_node<AttentionBackward>();
  node->set_next_edges(torch::autograd::collect_next_edges(query, key, value, mask, sinks));
  node->query = SavedVariable(query, /*is_output=*/false);
  node->key = SavedVariable(key, false);
  node->value = SavedVariable(value, false);
  node->options.save(options);
  const auto [out, lse] =
      below_autograd([&] { return mqa::attention_lse(query, key, value, options); });
  torch::autograd::set_history({out, lse}, node);
  node->out = SavedVariable(out, /*is_output=*/true);
  node->lse = SavedVariable(lse, true);
  return OutAndLse{out, lse};
}

Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value,
                 const AttentionOptions& options) {
  if (auto result = differentiable("attention", query, key, value, options)) {
    return std::get<0>(*result);
  }
  return below_autograd([&] { return mqa::attention(query, key, value, options); });
}

OutAndLse attention_lse(const Tensor& query, const Tensor& key, const Tensor& value,
                        const AttentionOptions& options) {
  if (auto result = differentiable("attention_lse", query, key, value, options)) return *result;
  return below_autograd([&] { return mqa::attention_lse(query, key, value, options); });
}

// The gradients themselves have no derivative: using one as if it had raises.
AttentionGrads attention_backward(const BackwardInputs& inputs, const Tensor& query,
                                  const Tensor& key, const Tensor& value,
                                  const AttentionOptions& options) {
  AttentionGrads grads =
      below_autograd([&] { return mqa::attention_backward(inputs, query, key, value, options); });
  const variable_list sources{inputs.grad_out,
                              value_or_undefined(inputs.grad_lse),
                              query,
                              key,
                              value,
                              value_or_undefined(options.attn_mask),
                              value_or_undefined(options.sinks)};
  if (torch::autograd::compute_requires_grad(sources)) {
    const auto node = make_node<torch::autograd::Error>(
        "mqa::attention has no second derivative: call backward without create_graph=True",
        torch::autograd::collect_next_edges(sources));
    const std::array<Tensor, 5> tensors =
        std::apply([](const auto&... grad) { return std::array<Tensor, 5>{grad...}; }, grads);
    for (size_t i = 0; i < tensors.size(); ++i) {
      if (inputs.output_mask[i]) torch::autograd::set_history(tensors[i], node);
    }
  }
  return grads;
}

}  // namespace
}  // namespace mqa::autograd

TORCH_LIBRARY_IMPL(mqa, Autograd, m) {
  if (!mqa::first_copy()) return;
  m.impl("attention", mqa::flat_attention<mqa::autograd::attention>);
  m.impl("attention_lse", mqa::flat_attention<mqa::autograd::attention_lse>);
  m.impl("attention_backward", mqa::flat_attention_backward<mqa::autograd::attention_backward>);
}
