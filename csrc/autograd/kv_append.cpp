#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <torch/library.h>

#include "../library.h"
#include "../signature.h"
#include "forward_mode.h"

namespace mqa::autograd {
namespace {

void kv_append(const Tensor& key_cache, const Tensor& value_cache, const Tensor& key,
               const Tensor& value, const Tensor& positions, const AppendOptions& o) {
  for (const auto& [name, tensor] : {std::pair<const char*, OptionalTensor>{"key_cache", key_cache},
                                     {"value_cache", value_cache},
                                     {"key", key},
                                     {"value", value},
                                     {"key_scale", o.key_scale},
                                     {"value_scale", o.value_scale}}) {
    TORCH_CHECK(!(at::GradMode::is_enabled() && tensor && tensor->requires_grad()),
                "mqa::kv_append has no gradient, but ", name,
                " requires one: call it under torch.no_grad() or detach it");
  }
  refuse_forward_mode("kv_append", {key_cache, value_cache, key, value});
  const at::AutoDispatchBelowAutograd guard;
  mqa::kv_append(key_cache, value_cache, key, value, positions, o);
}

// So that autograd notices when a tensor that it saved was written to.
void bump_versions(const Tensor& key_cache, const Tensor& value_cache, const Tensor& key,
                   const Tensor& value, const Tensor& positions, const AppendOptions& o) {
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    mqa::kv_append(key_cache, value_cache, key, value, positions, o);
  }
  for (const OptionalTensor& written :
       {OptionalTensor(key_cache), OptionalTensor(value_cache), o.key_scale, o.value_scale}) {
    if (written && !written->is_inference()) written->unsafeGetTensorImpl()->bump_version();
  }
}

}  // namespace
}  // namespace mqa::autograd

TORCH_LIBRARY_IMPL(mqa, Autograd, m) {
  if (mqa::first_copy()) m.impl("kv_append", mqa::flat_kv_append<mqa::autograd::kv_append>);
}

TORCH_LIBRARY_IMPL(mqa, ADInplaceOrView, m) {
  if (mqa::first_copy()) m.impl("kv_append", mqa::flat_kv_append<mqa::autograd::bump_versions>);
}
