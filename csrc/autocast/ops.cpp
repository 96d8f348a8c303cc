// Under autocast attention runs in the autocast dtype, and kv_append takes rows of any float dtype.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "../checks.h"
#include "../library.h"

namespace mqa::autocast {
namespace {

using c10::DeviceType;

constexpr c10::DispatchKey key_of(DeviceType device) {
  return device == DeviceType::CUDA ? c10::DispatchKey::Autocast : c10::DispatchKey::AutocastCPU;
}

// Casts float32, bfloat16 and float16; leaves quantised caches, bool masks and float64 alone.
template <DeviceType device>
Tensor cast(const Tensor& t) {
  if (is_quantized(t)) return t;
  return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), t, device);
}

template <DeviceType device>
AttentionOptions cast(AttentionOptions o) {
  for (OptionalTensor* t : {&o.attn_mask, &o.alibi_slopes, &o.sinks}) {
    // float32 goes with every query dtype and need not lose bits.
    if (*t && (*t)->scalar_type() != at::kFloat) *t = cast<device>(**t);
  }
  return o;
}

template <DeviceType device, auto op>
auto attention(const Tensor& query, const Tensor& key, const Tensor& value,
               const AttentionOptions& options) {
  const c10::impl::ExcludeDispatchKeyGuard guard(key_of(device));
  return op(cast<device>(query), cast<device>(key), cast<device>(value), cast<device>(options));
}

// key and value may come out of autocast in different dtypes; the cache decides.
template <DeviceType device>
void kv_append(const Tensor& key_cache, const Tensor& value_cache, const Tensor& key,
               const Tensor& value, const Tensor& positions, const AppendOptions& options) {
  const c10::impl::ExcludeDispatchKeyGuard guard(key_of(device));
  const auto dtype = is_quantized(key_cache) ? at::kFloat : key_cache.scalar_type();
  mqa::kv_append(key_cache, value_cache, key.to(dtype), value.to(dtype), positions, options);
}

template <DeviceType device>
void register_ops(torch::Library& m) {
  if (!first_copy()) return;
  m.impl("attention", flat_attention<attention<device, mqa::attention>>);
  m.impl("attention_lse", flat_attention<attention<device, mqa::attention_lse>>);
  m.impl("kv_append", flat_kv_append<kv_append<device>>);
}

}  // namespace
}  // namespace mqa::autocast

TORCH_LIBRARY_IMPL(mqa, AutocastCPU, m) { mqa::autocast::register_ops<c10::DeviceType::CPU>(m); }
TORCH_LIBRARY_IMPL(mqa, AutocastCUDA, m) { mqa::autocast::register_ops<c10::DeviceType::CUDA>(m); }
