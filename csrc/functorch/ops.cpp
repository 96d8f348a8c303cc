// vmap: a loop over the vmapped dimension. What is not vmapped, say a shared cache, is passed to
// every call as it is; vmapped caches are written where they are.
#include <ATen/functorch/DynamicLayer.h>
#include <ATen/functorch/PlumbingHelper.h>
#include <ATen/ops/stack.h>
#include <torch/library.h>

#include "../library.h"

namespace mqa::functorch {
namespace {

using at::Tensor;
using c10::IValue;

// One argument of the call, split along the dimension that is vmapped at the current level.
class Argument {
 public:
  Argument(const IValue& value, int64_t level) : value_(value) {
    if (value.isTensor()) {
      add(value.toTensor(), level);
    } else if (value.isTensorList()) {
      for (const Tensor& t : value.toTensorVector()) add(t, level);
    }
  }

  // -1 where nothing is vmapped.
  int64_t batch_size() const {
    for (const auto& [tensor, dim] : tensors_) {
      if (dim) return tensor.size(*dim);
    }
    return -1;
  }

  IValue at(int64_t index) const {
    if (value_.isTensor()) return part(tensors_[0], index);
    if (!value_.isTensorList()) return value_;
    c10::List<Tensor> parts;
    for (const Batched& tensor : tensors_) parts.push_back(part(tensor, index));
    return parts;
  }

 private:
  using Batched = std::tuple<Tensor, std::optional<int64_t>>;

  void add(const Tensor& t, int64_t level) {
    tensors_.push_back(t.defined() ? at::functorch::unwrapTensorAtLevel(t, level) : Batched());
  }

  static Tensor part(const Batched& batched, int64_t index) {
    const auto& [tensor, dim] = batched;
    return dim ? tensor.select(*dim, index) : tensor;
  }

  IValue value_;
  std::vector<Batched> tensors_;
};

void loop(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const int64_t level = at::functorch::maybeCurrentDynamicLayer()->layerId();
  const c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKey::FuncTorchBatched);
  const auto& schema = op.schema();
  const std::vector<IValue> values = torch::jit::pop(*stack, schema.arguments().size());
  std::vector<Argument> arguments;
  int64_t batch_size = -1;
  for (const IValue& value : values) {
    arguments.emplace_back(value, level);
    batch_size = std::max(batch_size, arguments.back().batch_size());
  }
  if (batch_size < 0) {  // vmapped at another level only
    *stack = values;
    return op.callBoxed(stack);
  }
  TORCH_CHECK(batch_size > 0, schema.name(), ": expected a vmapped dimension of size >= 1, got 0");
  for (size_t i = 0; i < arguments.size(); ++i) {
    const c10::Argument& argument = schema.arguments()[i];
    const bool written = argument.alias_info() && argument.alias_info()->isWrite();
    TORCH_CHECK(!written || values[i].isNone() || arguments[i].batch_size() > 0, schema.name(),
                ": expected ", argument.name(),
                " to be vmapped as well (it is written in place), got one for all");
  }

  std::vector<std::vector<Tensor>> results(schema.returns().size());
  for (int64_t index = 0; index < batch_size; ++index) {
    torch::jit::Stack call;
    for (const Argument& argument : arguments) call.push_back(argument.at(index));
    op.callBoxed(call);
    for (size_t i = 0; i < results.size(); ++i) results[i].push_back(call[i].toTensor());
  }
  for (const std::vector<Tensor>& parts : results) {
    stack->push_back(at::functorch::makeBatched(at::stack(parts), 0, level));
  }
}

}  // namespace
}  // namespace mqa::functorch

TORCH_LIBRARY_IMPL(mqa, FuncTorchBatched, m) {
  if (!mqa::first_copy()) return;
  for (const char* op :
       {"attention", "attention_lse", "attention_backward", "merge", "kv_append"}) {
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<mqa::functorch::loop>());
  }
}
