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

void check_head_dims(const char* op, const Tensor& query, const Tensor& value, int64_t most,
                     int64_t most_of_values) {
  const auto check = [op](const char* name, const Tensor& t, int64_t most) {
    TORCH_CHECK_NOT_IMPLEMENTED(t.size(-1) <= most, "mqa::", op, ": expected ", name,
                                ".size(-1) <= ", most, " on CUDA, got ", t.size(-1));
  };
  check("query", query, most);
  check("value", value, most_of_values);
}

void check_counts(const char* op, const kernels::AttentionParams& p) {
  constexpr int64_t kMost = int64_t{1} << 30;
  TORCH_CHECK_NOT_IMPLEMENTED(p.S <= kMost, "mqa::", op, ": expected at most ", kMost,
                              " slots in a sequence's cache on CUDA, got ", p.S);
  TORCH_CHECK_NOT_IMPLEMENTED(p.H_q / p.H_kv * p.T <= kMost, "mqa::", op, ": expected at most ",
                              kMost, " query rows for a KV head on CUDA, got ",
                              p.H_q / p.H_kv * p.T);
}

}  // namespace mqa::cuda
