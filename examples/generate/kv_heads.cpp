#include "kv_heads.h"

#include <ATen/core/Tensor.h>

#include <string>

#include "error.h"

namespace {

// The rows `weight [H_kv * D, ...]` of `old_count` heads as those of `count` heads.
at::Tensor resize(const at::Tensor& weight, int64_t old_count, int64_t count) {
  const int64_t head_dim = weight.size(0) / old_count;
  const at::Tensor heads = weight.unflatten(0, {old_count, head_dim});
  return (count < old_count ? heads.unflatten(0, {count, old_count / count}).mean(1)
                            : heads.repeat_interleave(count / old_count, 0))
      .flatten(0, 1);
}

}  // namespace

void convert_kv_heads(torch::jit::Module& decoder, int64_t num_heads, int64_t num_kv_heads) {
  const int64_t old_count = decoder.attr("num_kv_heads").toInt();
  if (num_heads % num_kv_heads != 0 ||
      (old_count % num_kv_heads != 0 && num_kv_heads % old_count != 0)) {
    throw UserError("expected a number of --kv-heads that divides the " +
                    std::to_string(num_heads) + " query heads, and divides " +
                    std::to_string(old_count) + " or is a multiple of it, got " +
                    std::to_string(num_kv_heads));
  }
  for (const auto& parameter : decoder.named_parameters()) {
    const auto belongs_to = [&](const char* name) {
      return parameter.name.find(name) != parameter.name.npos;
    };
    if (belongs_to(".k_proj.") || belongs_to(".v_proj.")) {  // weight or bias
      parameter.value.set_data(resize(parameter.value, old_count, num_kv_heads));
    }
  }
  decoder.setattr("num_kv_heads", num_kv_heads);
}
