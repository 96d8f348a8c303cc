#include "checks.h"

#include <cstdlib>
#include <string_view>

namespace mqa::cuda {

void check_not_float64(const char* op, const char* name, const Tensor& tensor) {
  TORCH_CHECK_NOT_IMPLEMENTED(tensor.scalar_type() != at::kDouble, "mqa::", op, ": expected ", name,
                              "'s dtype to be float32, bfloat16 or float16 on CUDA, got float64");
}

bool checks_contents() {
  static const bool on = [] {
    const char* value = std::getenv("MQA_DEBUG");
    return value != nullptr && std::string_view(value) == "1";
  }();
  return on;
}

}  // namespace mqa::cuda
