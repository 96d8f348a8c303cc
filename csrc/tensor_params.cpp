#include "tensor_params.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>

namespace mqa {
namespace {

using kernels::DType;

// The kernels need a contiguous last dimension: this is the one copy that attention ever makes.
Tensor with_contiguous_rows(const Tensor& t) {
  return t.size(-1) <= 1 || t.stride(-1) == 1 ? t : t.contiguous();
}

// Keys as the device's kernels read them.
Tensor readable_keys(const Tensor& key) {
  if (!is_packed(key)) return with_contiguous_rows(key);
  if (!key.is_cpu()) return unpacked(key);
  return has_contiguous_groups(key) ? key : key.contiguous();
}

Tensor in_accumulation_dtype(const OptionalTensor& t, const Tensor& query) {
  return t ? t->to(accumulation_dtype(query)).contiguous() : Tensor();
}

template <class T>
T* data_or_null(const Tensor& t) {
  return t.defined() ? static_cast<T*>(t.data_ptr()) : nullptr;
}

kernels::Cache cache_params(const Tensor& t, const OptionalTensor& scale) {
  kernels::Cache cache{t.data_ptr(), kernel_dtype(t), t.stride(0), t.stride(1), t.stride(2),
                       {},           is_packed(t)};
  if (scale && scale->dim() == 1) {
    cache.scales = {scale->data_ptr<float>(), 0, scale->stride(0), 0};
  } else if (scale) {
    cache.scales = {scale->data_ptr<float>(), scale->stride(0), scale->stride(1), scale->stride(2)};
  }
  return cache;
}

kernels::BlockTable block_table_params(const OptionalTensor& table, const Tensor& key) {
  if (!table) return {};
  return {table->const_data_ptr<int32_t>(), table->stride(0), table->stride(1),
          row_slots(key).expect_int(), key.size(0)};
}

kernels::Mask mask_params(const Tensor& mask) {  // expanded to [B, H_q, T, S]
  return {mask.data_ptr(), kernel_dtype(mask), mask.stride(0),
          mask.stride(1),  mask.stride(2),     mask.stride(3)};
}

int64_t window_size(const c10::SymInt& window) {
  constexpr int64_t kUnlimited = int64_t{1} << 62;  // sums of a position and a window stay in range
  return std::min(window.guard_int(__FILE__, __LINE__), kUnlimited);
}

}  // namespace

DType kernel_dtype(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return DType::kFloat64;
    case at::kFloat:
      return DType::kFloat32;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kHalf:
      return DType::kFloat16;
    case at::kChar:
      return DType::kInt8;
    case at::kFloat8_e4m3fn:
      return DType::kFloat8E4M3;
    case at::kBool:
      return DType::kBool;
    default:
      TORCH_INTERNAL_ASSERT(false, "the checks let ", tensor.scalar_type(), " through");
  }
}

at::ScalarType accumulation_dtype(const Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

double score_scale(const AttentionOptions& options, int64_t D) {
  return options.scale.value_or(1 / std::sqrt(static_cast<double>(D)));
}

bool is_packed(const Tensor& key) { return key.dim() == 5; }

bool has_contiguous_groups(const Tensor& key) {
  return key.stride(4) == 1 && (key.size(3) <= 1 || key.stride(3) == kernels::kPackedSlots);
}

Tensor unpacked(const Tensor& key) { return key.transpose(3, 4).flatten(2, 3); }

c10::SymInt row_slots(const Tensor& key) {
  return is_packed(key) ? key.sym_size(2) * kernels::kPackedSlots : key.sym_size(2);
}

int64_t cache_slots(const Tensor& key, const OptionalTensor& block_table) {
  const int64_t slots = row_slots(key).expect_int();
  return block_table ? block_table->size(1) * slots : slots;
}

AttentionCall attention_inputs(const Tensor& query, const Tensor& key, const Tensor& value,
                               const AttentionOptions& o) {
  const int64_t B = query.size(0), H_q = query.size(1), T = query.size(2), D = query.size(3);
  const int64_t S = cache_slots(key, o.block_table), D_v = value.size(3);

  AttentionCall call;
  call.query = with_contiguous_rows(query);
  call.key = readable_keys(key);
  call.value = with_contiguous_rows(value);
  if (o.attn_mask) call.mask = o.attn_mask->expand({B, H_q, T, S});
  if (o.seq_lens) call.seq_lens = o.seq_lens->to(at::kLong).contiguous();
  call.alibi_slopes = in_accumulation_dtype(o.alibi_slopes, query);
  call.sinks = in_accumulation_dtype(o.sinks, query);

  call.params = {
      .B = B,
      .H_q = H_q,
      .H_kv = key.size(1),
      .T = T,
      .S = S,
      .D = D,
      .D_v = D_v,
      .query = call.query.data_ptr(),
      .dtype = kernel_dtype(query),
      .query_batch_stride = call.query.stride(0),
      .query_head_stride = call.query.stride(1),
      .query_token_stride = call.query.stride(2),
      .key = cache_params(call.key, o.key_scale),
      .value = cache_params(call.value, o.value_scale),
      .block_table = block_table_params(o.block_table, key),
      .seq_lens = data_or_null<int64_t>(call.seq_lens),
      .mask = call.mask.defined() ? mask_params(call.mask) : kernels::Mask{},
      .is_causal = o.is_causal,
      .window_left = window_size(o.window_left),
      .window_right = window_size(o.window_right),
      .scale = score_scale(o, D),
      .softcap = o.softcap,
      .alibi_slopes = data_or_null<void>(call.alibi_slopes),
      .alibi_batch_stride = call.alibi_slopes.defined() && call.alibi_slopes.dim() == 2 ? H_q : 0,
      .alibi_head_stride = 1,
      .sinks = data_or_null<void>(call.sinks),
      .lse = nullptr,
      .out = nullptr,
  };
  return call;
}

AttentionCall attention_call(const Tensor& query, const Tensor& key, const Tensor& value,
                             const AttentionOptions& options, bool want_lse) {
  AttentionCall call = attention_inputs(query, key, value, options);
  const at::IntArrayRef rows = query.sizes().slice(0, 3);
  call.out = at::empty({rows[0], rows[1], rows[2], value.size(3)}, query.options());
  if (want_lse) call.lse = at::empty(rows, query.options().dtype(accumulation_dtype(query)));
  call.params.out = call.out.data_ptr();
  call.params.lse = data_or_null<void>(call.lse);
  return call;
}

BackwardCall backward_call(const BackwardInputs& inputs, const Tensor& query, const Tensor& key,
                           const Tensor& value, const AttentionOptions& o) {
  const int64_t B = query.size(0), H_q = query.size(1), T = query.size(2);
  const int64_t S = cache_slots(key, o.block_table);
  const auto& wanted = inputs.output_mask;
  const auto exact = query.options().dtype(accumulation_dtype(query));
  // Rows of several sequences may share a page: their gradients are added up afterwards.
  const auto cache_grad = o.block_table ? exact : query.options();

  BackwardCall call;
  call.forward = attention_inputs(query, key, value, o);
  call.grad_out = with_contiguous_rows(inputs.grad_out);
  call.out = inputs.out.contiguous();
  call.lse = inputs.lse.contiguous();
  if (inputs.grad_lse) call.grad_lse = inputs.grad_lse->contiguous();
  call.row_sums = at::empty({B, H_q, T}, exact);
  call.wants_sinks = wanted[4];
  if (wanted[0]) call.grad_query = at::empty(query.sizes(), query.options());
  if (wanted[1]) call.grad_key = at::empty({B, key.size(1), S, key.size(3)}, cache_grad);
  if (wanted[2]) call.grad_value = at::empty({B, key.size(1), S, value.size(3)}, cache_grad);
  if (wanted[3]) call.grad_mask = at::zeros(o.attn_mask->sizes(), exact);

  call.forward.params.out = call.out.data_ptr();
  call.forward.params.lse = call.lse.data_ptr();
  call.params = {
      call.forward.params,
      call.grad_out.const_data_ptr(),
      call.grad_out.stride(0),
      call.grad_out.stride(1),
      call.grad_out.stride(2),
      data_or_null<void>(call.grad_lse),
      call.row_sums.data_ptr(),
      data_or_null<void>(call.grad_query),
      data_or_null<void>(call.grad_key),
      data_or_null<void>(call.grad_value),
      o.block_table ? kernel_dtype(call.row_sums) : call.forward.params.dtype,
      wanted[3] ? mask_params(call.grad_mask.expand({B, H_q, T, S})) : kernels::Mask{},
      nullptr,
  };
  return call;
}

AppendCall append_call(const Tensor& key_cache, const Tensor& value_cache, const Tensor& key,
                       const Tensor& value, const Tensor& positions, const AppendOptions& o) {
  AppendCall call;
  call.key = with_contiguous_rows(key);
  call.value = with_contiguous_rows(value);
  call.positions = positions.to(at::kLong).contiguous();
  const auto side = [](const Tensor& cache, const OptionalTensor& scale, const Tensor& source) {
    return kernels::AppendParams::Side{
        cache_params(cache, scale), scale && scale->dim() == 1, source.size(3),   source.data_ptr(),
        kernel_dtype(source),       source.stride(0),           source.stride(1), source.stride(2)};
  };
  call.params = {
      .B = key.size(0),
      .H_kv = key.size(1),
      .T = key.size(2),
      .positions = call.positions.const_data_ptr<int64_t>(),
      .block_table = block_table_params(o.block_table, key_cache),
      .key = side(key_cache, o.key_scale, call.key),
      .value = side(value_cache, o.value_scale, call.value),
      .capacity = cache_slots(key_cache, o.block_table),
  };
  return call;
}

}  // namespace mqa
