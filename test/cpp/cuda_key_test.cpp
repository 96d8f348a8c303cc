// What is registered for the dispatch key CUDA, called with tensors on the CPU: what it says before
// it asks anything of a device. MQA_HAS_CUDA: the build has the kernels.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>

namespace {

// Calls an op with its first arguments, and the others' defaults.
void call_for_cuda(const char* name, const std::vector<c10::IValue>& arguments) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
  torch::jit::Stack stack(arguments);
  for (size_t i = arguments.size(); i < op.schema().arguments().size(); ++i) {
    stack.push_back(*op.schema().arguments()[i].default_value());
  }
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CUDA), &stack);
}

struct Call {
  const char* op;
  std::vector<c10::IValue> arguments;
};

// float64: on CUDA that is refused.
std::vector<Call> calls() {
  const at::Tensor x = at::zeros({1, 1, 2, 4}, at::kDouble),
                   lse = at::zeros({1, 1, 2}, at::kDouble);
  const at::Tensor positions = at::zeros({1}, at::kLong);
  return {{"mqa::attention", {x, x, x}},
          {"mqa::attention_lse", {x, x, x}},
          {"mqa::merge", {std::vector<at::Tensor>{x}, std::vector<at::Tensor>{lse}}},
          {"mqa::kv_append", {x, x, x.clone(), x.clone(), positions}}};
}

TEST(CudaKey, RefusesWithTheReason) {
  for (const Call& call : calls()) {
    try {
      call_for_cuda(call.op, call.arguments);
      FAIL() << call.op << " did not refuse";
    } catch (const c10::NotImplementedError& error) {
      const std::string message = error.what_without_backtrace();
      const std::string reason =
          MQA_HAS_CUDA ? "on CUDA, got float64" : "mqa was built without CUDA";
      EXPECT_EQ(message.rfind(std::string(call.op) + ": expected ", 0), 0u) << message;
      EXPECT_NE(message.find(reason), std::string::npos) << message;
    }
  }
}

}  // namespace
