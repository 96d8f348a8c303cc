#include "checks.h"

#include <ATen/MemoryOverlap.h>
#include <c10/core/SymBool.h>

#include <cmath>

#include "tensor_params.h"

namespace mqa {
namespace {

// Prints as in Python, and only when a message is made.
struct Dtype {
  at::ScalarType type;
  explicit Dtype(const Tensor& t) : type(t.scalar_type()) {}
  friend std::ostream& operator<<(std::ostream& out, Dtype dtype) {
    return out << c10::getDtypeNames(dtype.type).first;
  }
};

bool is_float(const Tensor& t) {
  const auto dtype = t.scalar_type();
  return dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 ||
         dtype == at::kHalf;
}

bool is_index(const Tensor& t) {
  return t.scalar_type() == at::kInt || t.scalar_type() == at::kLong;
}

struct Named {
  const char* name;
  const Tensor& tensor;
};

// The checks of one call of one op.
class Checks {
 public:
  explicit Checks(const char* op) : op_(op) {}

  void dims(Named t, int64_t dims, const char* shape) const {
    TORCH_CHECK(t.tensor.dim() == dims, "mqa::", op_, ": expected ", t.name, ".dim() == ", dims,
                " (", shape, "), got ", t.tensor.dim());
  }

  void size(Named t, int64_t dim, const c10::SymInt& expected, const char* why) const {
    const c10::SymInt actual = t.tensor.sym_size(dim);
    TORCH_SYM_CHECK(actual.sym_eq(expected), "mqa::", op_, ": expected ", t.name, ".size(", dim,
                    ") == ", expected, " (", why, "), got ", actual);
  }

  // Of keys, which may be packed.
  void key_dims(Named t, const char* shape) const {
    if (!is_packed(t.tensor)) return dims(t, 4, shape);
    size(t, 4, kernels::kPackedSlots, "the slots of packed keys that lie side by side");
  }

  void at_least_one(Named t, int64_t dim, const char* what) const {
    const c10::SymInt actual = t.tensor.sym_size(dim);
    TORCH_SYM_CHECK(actual.sym_ge(1), "mqa::", op_, ": expected ", t.name, ".size(", dim,
                    ") >= 1 (", what, "), got ", actual);
  }

  template <class... Expected>
  void dtype(Named t, bool good, const Expected&... expected) const {
    TORCH_CHECK(good, "mqa::", op_, ": expected ", t.name, "'s dtype to be ", expected..., ", got ",
                Dtype(t.tensor));
  }

  void same_dtype(Named t, Named as) const {
    dtype(t, t.tensor.scalar_type() == as.tensor.scalar_type(), Dtype(as.tensor), " (", as.name,
          "'s dtype)");
  }

  void device(Named t, Named as) const {
    TORCH_CHECK(t.tensor.device() == as.tensor.device(), "mqa::", op_, ": expected ", t.name,
                " on ", as.tensor.device(), " (", as.name, "'s device), got ", t.tensor.device());
  }

  // One dimension of size `expected`.
  void vector(Named t, const c10::SymInt& expected, const char* shape) const {
    TORCH_SYM_CHECK(is_vector(t.tensor, expected), "mqa::", op_, ": expected ", t.name,
                    " of shape [", expected, "] (", shape, "), got ", t.tensor.sym_sizes());
  }

  void index_vector(Named t, const c10::SymInt& B) const {
    vector(t, B, "[B]");
    dtype(t, is_index(t.tensor), "int32 or int64");
  }

  // Float tensors that enter the scores.
  void score_dtype(Named t, const Tensor& query) const {
    dtype(t, t.tensor.scalar_type() == at::kFloat || t.tensor.scalar_type() == query.scalar_type(),
          "float32 or ", Dtype(query), " (query's dtype)");
  }

  void block_table(Named t, const c10::SymInt& B, Named cache) const {
    TORCH_SYM_CHECK(t.tensor.dim() == 2 ? t.tensor.sym_size(0).sym_eq(B) : c10::SymBool(false),
                    "mqa::", op_, ": expected ", t.name, " of shape [", B,
                    ", pages] ([B, pages]), got ", t.tensor.sym_sizes());
    dtype(t, t.tensor.scalar_type() == at::kInt, "int32");
    at_least_one(cache, 2, "page_size");
  }

  // A scale comes with a quantised cache and only with one.
  void scale(const char* name, const OptionalTensor& scale, Named cache, bool paged) const {
    if (!is_quantized(cache.tensor)) {
      TORCH_CHECK(!scale, "mqa::", op_, ": expected no ", name, " for ", cache.name, " of dtype ",
                  Dtype(cache.tensor), ", got one");
      return;
    }
    TORCH_CHECK(scale.has_value(), "mqa::", op_, ": expected ", name, " for ", cache.name,
                " of dtype ", Dtype(cache.tensor), ", got none");
    const Named t{name, *scale};
    dtype(t, scale->scalar_type() == at::kFloat, "float32");
    const c10::SymInt sizes[] = {cache.tensor.sym_size(0), cache.tensor.sym_size(1),
                                 row_slots(cache.tensor)};
    const bool per_token = scale->dim() == 3;
    TORCH_SYM_CHECK(
        per_token ? scale->sym_size(0).sym_eq(sizes[0]) & scale->sym_size(1).sym_eq(sizes[1]) &
                        scale->sym_size(2).sym_eq(sizes[2])
                  : is_vector(*scale, sizes[1]),
        "mqa::", op_, ": expected ", name, " of shape [", sizes[1], "] or [", sizes[0], ", ",
        sizes[1], ", ", sizes[2], "] ([H_kv] or ",
        paged ? "[num_pages, H_kv, page_size]" : "[B, H_kv, S]", "), got ", scale->sym_sizes());
  }

  void mask(Named t, const Tensor& query, const c10::SymInt& S) const {
    dtype(t,
          t.tensor.scalar_type() == at::kBool || t.tensor.scalar_type() == at::kFloat ||
              t.tensor.scalar_type() == query.scalar_type(),
          "bool, float32 or ", Dtype(query), " (query's dtype)");
    const c10::SymInt shape[4] = {query.sym_size(0), query.sym_size(1), query.sym_size(2), S};
    c10::SymBool broadcasts = t.tensor.dim() <= 4;
    for (int64_t i = 1; i <= std::min<int64_t>(t.tensor.dim(), 4); ++i) {
      const c10::SymInt size = t.tensor.sym_size(-i);
      broadcasts = broadcasts & (size.sym_eq(1) | size.sym_eq(shape[4 - i]));
    }
    TORCH_SYM_CHECK(broadcasts, "mqa::", op_, ": expected attn_mask to broadcast to ",
                    c10::SymIntArrayRef(shape, 4), " ([B, H_q, T, S]), got ", t.tensor.sym_sizes());
  }

  void window(const char* name, const c10::SymInt& window) const {
    TORCH_CHECK_VALUE(window.sym_ge(-1).expect_true(__FILE__, __LINE__), "mqa::", op_,
                      ": expected ", name, " >= -1 (-1 means unlimited), got ", window);
  }

  static c10::SymBool is_vector(const Tensor& t, const c10::SymInt& size) {
    return t.dim() == 1 ? t.sym_size(0).sym_eq(size) : c10::SymBool(false);
  }

 private:
  const char* op_;
};

}  // namespace

bool is_quantized(const Tensor& cache) {
  return cache.scalar_type() == at::kChar || cache.scalar_type() == at::kFloat8_e4m3fn;
}

void check_attention(const char* op, const Tensor& query, const Tensor& key, const Tensor& value,
                     const AttentionOptions& o) {
  const Checks check(op);
  const bool paged = o.block_table.has_value();
  check.dims({"query", query}, 4, "[B, H_q, T, D]");
  check.key_dims({"key", key}, paged ? "[num_pages, H_kv, page_size, D]" : "[B, H_kv, S, D]");
  check.dims({"value", value}, 4,
             paged ? "[num_pages, H_kv, page_size, D_v]" : "[B, H_kv, S, D_v]");
  const auto B = query.sym_size(0), H_q = query.sym_size(1), H_kv = key.sym_size(1);

  check.dtype({"query", query}, is_float(query), "float32, float64, bfloat16 or float16");
  check.dtype({"key", key}, key.scalar_type() == query.scalar_type() || is_quantized(key),
              Dtype(query), " (query's dtype), int8 or float8_e4m3fn");
  check.same_dtype({"value", value}, {"key", key});
  for (const Named t : {Named{"key", key}, Named{"value", value}})
    check.device(t, {"query", query});
  for (const auto& [name, tensor] :
       {std::pair<const char*, const OptionalTensor&>{"attn_mask", o.attn_mask},
        {"seq_lens", o.seq_lens},
        {"block_table", o.block_table},
        {"alibi_slopes", o.alibi_slopes},
        {"sinks", o.sinks},
        {"key_scale", o.key_scale},
        {"value_scale", o.value_scale}}) {
    if (tensor) check.device({name, *tensor}, {"query", query});
  }

  check.at_least_one({"query", query}, -1, "head_dim");
  check.size({"key", key}, is_packed(key) ? 3 : -1, query.sym_size(-1), "query's head_dim");
  if (!paged) check.size({"key", key}, 0, B, "query's batch");
  check.size({"value", value}, 0, key.sym_size(0), paged ? "key's num_pages" : "key's batch");
  check.size({"value", value}, 1, H_kv, "key's num_kv_heads");
  check.size({"value", value}, 2, row_slots(key), paged ? "key's page_size" : "key's slots");
  check.at_least_one({"key", key}, 1, "num_kv_heads");
  TORCH_SYM_CHECK(
      (H_q % H_kv).sym_eq(0), "mqa::", op,
      ": expected query.size(1) to be a multiple of key.size(1) (query heads share KV heads "
      "evenly), got ",
      H_q, " and ", H_kv);

  if (o.seq_lens) check.index_vector({"seq_lens", *o.seq_lens}, B);
  if (paged) check.block_table({"block_table", *o.block_table}, B, {"key", key});
  if (o.attn_mask) {
    const auto S = paged ? o.block_table->sym_size(1) * row_slots(key) : row_slots(key);
    check.mask({"attn_mask", *o.attn_mask}, query, S);
  }
  check.window("window_left", o.window_left);
  check.window("window_right", o.window_right);
  TORCH_CHECK_VALUE(!o.scale || std::isfinite(*o.scale), "mqa::", op,
                    ": expected scale to be finite, got ", o.scale.value_or(0));
  TORCH_CHECK_VALUE(std::isfinite(o.softcap) && o.softcap >= 0, "mqa::", op,
                    ": expected softcap >= 0 and finite (0 means none), got ", o.softcap);
  if (o.alibi_slopes) {
    const Tensor& slopes = *o.alibi_slopes;
    TORCH_SYM_CHECK(slopes.dim() == 2
                        ? slopes.sym_size(0).sym_eq(B) & slopes.sym_size(1).sym_eq(H_q)
                        : Checks::is_vector(slopes, H_q),
                    "mqa::", op, ": expected alibi_slopes of shape [", H_q, "] or [", B, ", ", H_q,
                    "] ([H_q] or [B, H_q]), got ", slopes.sym_sizes());
    check.score_dtype({"alibi_slopes", slopes}, query);
  }
  if (o.sinks) {
    check.vector({"sinks", *o.sinks}, H_q, "[H_q]");
    check.score_dtype({"sinks", *o.sinks}, query);
  }
  check.scale("key_scale", o.key_scale, {"key", key}, paged);
  check.scale("value_scale", o.value_scale, {"value", value}, paged);
}

void check_attention_backward(const BackwardInputs& inputs, const Tensor& query, const Tensor& key,
                              const Tensor& value, const AttentionOptions& o) {
  const Checks check("attention_backward");
  check.dims({"key", key}, 4, "[B, H_kv, S, D]");  // never packed
  check_attention("attention_backward", query, key, value, o);
  const c10::SymInt shape[] = {query.sym_size(0), query.sym_size(1), query.sym_size(2),
                               value.sym_size(3)};
  const auto result = [&](Named t, int64_t dims, const char* letters, at::ScalarType dtype) {
    check.device(t, {"query", query});
    check.dtype(t, t.tensor.scalar_type() == dtype, c10::getDtypeNames(dtype).first);
    check.dims(t, dims, letters);
    for (int64_t d = 0; d < dims; ++d) check.size(t, d, shape[d], "as the results of attention");
  };
  for (const Named t : {Named{"grad_out", inputs.grad_out}, Named{"out", inputs.out}}) {
    result(t, 4, "[B, H_q, T, D_v]", query.scalar_type());
  }
  result({"lse", inputs.lse}, 3, "[B, H_q, T]", accumulation_dtype(query));
  if (inputs.grad_lse) {
    result({"grad_lse", *inputs.grad_lse}, 3, "[B, H_q, T]", accumulation_dtype(query));
  }
  const auto wanted = [&](size_t i, const char* name, bool differentiable) {
    TORCH_CHECK(!inputs.output_mask[i] || differentiable, "mqa::attention_backward: expected no ",
                "gradient of ", name, " to be wanted where it is missing or holds no floats, got ",
                "output_mask[", i, "] == True");
  };
  wanted(1, "key", !is_quantized(key));
  wanted(2, "value", !is_quantized(value));
  wanted(3, "attn_mask", o.attn_mask && o.attn_mask->is_floating_point());
  wanted(4, "sinks", o.sinks.has_value());
}

void check_merge(at::TensorList outs, at::TensorList lses) {
  const Checks check("merge");
  TORCH_CHECK(!outs.empty(), "mqa::merge: expected at least one part in outs, got none");
  TORCH_CHECK(lses.size() == outs.size(), "mqa::merge: expected len(lses) == ", outs.size(),
              " (one per part in outs), got ", lses.size());
  const Named first{"outs[0]", outs[0]};
  check.dims(first, 4, "[B, H_q, T, D_v]");
  check.dtype(first, is_float(outs[0]), "float32, float64, bfloat16 or float16");
  const auto shape = outs[0].sym_sizes();
  const bool is_double = outs[0].scalar_type() == at::kDouble;
  for (size_t i = 0; i < outs.size(); ++i) {
    const std::string out_name = c10::str("outs[", i, "]"), lse_name = c10::str("lses[", i, "]");
    const Named out{out_name.c_str(), outs[i]}, lse{lse_name.c_str(), lses[i]};
    check.same_dtype(out, first);
    check.dtype(lse, lses[i].scalar_type() == (is_double ? at::kDouble : at::kFloat),
                is_double ? "float64" : "float32");
    check.device(out, first);
    check.device(lse, first);
    check.dims(out, 4, "[B, H_q, T, D_v]");
    check.dims(lse, 3, "[B, H_q, T]");
    for (int64_t d = 0; d < 4; ++d) check.size(out, d, shape[d], "as in outs[0]");
    for (int64_t d = 0; d < 3; ++d) check.size(lse, d, shape[d], "as in outs[0]");
  }
}

void check_kv_append(const Tensor& key_cache, const Tensor& value_cache, const Tensor& key,
                     const Tensor& value, const Tensor& positions, const AppendOptions& o) {
  const Checks check("kv_append");
  const bool paged = o.block_table.has_value();
  const Named key_cache_{"key_cache", key_cache}, value_cache_{"value_cache", value_cache};
  const Named key_{"key", key}, value_{"value", value};
  check.key_dims(key_cache_, paged ? "[num_pages, H_kv, page_size, D]" : "[B, H_kv, S, D]");
  check.dims(value_cache_, 4, paged ? "[num_pages, H_kv, page_size, D_v]" : "[B, H_kv, S, D_v]");
  check.dims(key_, 4, "[B, H_kv, T, D]");
  check.dims(value_, 4, "[B, H_kv, T, D_v]");

  check.dtype(key_cache_, is_float(key_cache) || is_quantized(key_cache),
              "float32, float64, bfloat16, float16, int8 or float8_e4m3fn");
  check.same_dtype(value_cache_, key_cache_);
  check.dtype(key_, is_float(key), "float32, float64, bfloat16 or float16");
  check.same_dtype(value_, key_);
  for (const Named t : {value_cache_, key_, value_, Named{"positions", positions}}) {
    check.device(t, key_cache_);
  }
  for (const auto& [name, tensor] :
       {std::pair<const char*, const OptionalTensor&>{"block_table", o.block_table},
        {"key_scale", o.key_scale},
        {"value_scale", o.value_scale}}) {
    if (tensor) check.device({name, *tensor}, key_cache_);
  }

  const auto B = key.sym_size(0);
  if (!paged) check.size(key_, 0, key_cache.sym_size(0), "key_cache's batch");
  check.size(value_cache_, 0, key_cache.sym_size(0),
             paged ? "key_cache's num_pages" : "key_cache's batch");
  check.size(value_cache_, 1, key_cache.sym_size(1), "key_cache's num_kv_heads");
  check.size(value_cache_, 2, row_slots(key_cache),
             paged ? "key_cache's page_size" : "key_cache's slots");
  check.size(key_, 1, key_cache.sym_size(1), "key_cache's num_kv_heads");
  check.size(key_, 3, key_cache.sym_size(3), "key_cache's head_dim");
  check.size(value_, 0, B, "key's batch");
  check.size(value_, 1, key_cache.sym_size(1), "key_cache's num_kv_heads");
  check.size(value_, 2, key.sym_size(2), "key's new tokens");
  check.size(value_, 3, value_cache.sym_size(3), "value_cache's head_dim");
  check.index_vector({"positions", positions}, B);
  if (paged) check.block_table({"block_table", *o.block_table}, B, key_cache_);
  check.scale("key_scale", o.key_scale, key_cache_, paged);
  check.scale("value_scale", o.value_scale, value_cache_, paged);
}

namespace {

Tensor in_host_memory(const Tensor& t) { return t.is_cpu() ? t : t.cpu(); }

void check_seq_lens(const char* op, const Tensor& seq_lens, int64_t slots) {
  const int64_t* lens = seq_lens.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < seq_lens.numel(); ++b) {
    TORCH_CHECK_VALUE(0 <= lens[b] && lens[b] <= slots, "mqa::", op, ": expected 0 <= seq_lens[", b,
                      "] <= ", slots, " (key's slots), got ", lens[b]);
  }
}

void check_positions(const Tensor& positions, int64_t tokens, int64_t capacity) {
  const int64_t* first = positions.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < positions.numel(); ++b) {
    TORCH_CHECK_VALUE(0 <= first[b] && first[b] <= capacity - tokens,
                      "mqa::kv_append: expected 0 <= positions[", b, "] <= ", capacity - tokens,
                      " (capacity ", capacity, " - ", tokens, " new tokens), got ", first[b]);
  }
}

void check_pages(const char* op, const Tensor& block_table, int64_t batch, int64_t begin,
                 int64_t end, int64_t page_size, int64_t num_pages) {
  if (begin >= end) return;
  const auto pages = block_table.accessor<int32_t, 2>()[batch];
  for (int64_t i = begin / page_size; i <= (end - 1) / page_size; ++i) {
    TORCH_CHECK_VALUE(0 <= pages[i] && pages[i] < num_pages, "mqa::", op,
                      ": expected 0 <= block_table[", batch, ", ", i, "] < ", num_pages,
                      " (num_pages), got ", pages[i]);
  }
}

void check_writable(const char* name, const Tensor& tensor, bool contiguous_rows) {
  TORCH_CHECK(at::has_internal_overlap(tensor) != at::MemOverlap::Yes, "mqa::kv_append: expected ",
              name, " not to overlap itself, got strides ", tensor.strides());
  TORCH_CHECK(!contiguous_rows || tensor.size(-1) <= 1 || tensor.stride(-1) == 1,
              "mqa::kv_append: expected ", name, ".stride(-1) == 1 (it is written in place), got ",
              tensor.stride(-1));
  TORCH_CHECK(!contiguous_rows || !is_packed(tensor) || has_contiguous_groups(tensor),
              "mqa::kv_append: expected ", name, ".stride(3) == ", kernels::kPackedSlots,
              " (packed keys are written in place), got ", tensor.stride(3));
}

void check_head_scale(const char* name, const Tensor& scale) {
  const auto scales = scale.accessor<float, 1>();
  for (int64_t h = 0; h < scales.size(0); ++h) {
    TORCH_CHECK_VALUE(std::isfinite(scales[h]) && scales[h] > 0, "mqa::kv_append: expected ", name,
                      "[", h, "] > 0 and finite, got ", scales[h]);
  }
}

// Scales per head are read, scales per token are written.
bool is_per_head(const Tensor& scale) { return scale.dim() == 1; }

}  // namespace

void check_append_memory(const Tensor& key_cache, const Tensor& value_cache,
                         const AppendOptions& o) {
  check_writable("key_cache", key_cache, /*contiguous_rows=*/true);
  check_writable("value_cache", value_cache, /*contiguous_rows=*/true);
  for (const auto& [name, scale] :
       {std::pair<const char*, const OptionalTensor&>{"key_scale", o.key_scale},
        {"value_scale", o.value_scale}}) {
    if (scale && !is_per_head(*scale)) check_writable(name, *scale, /*contiguous_rows=*/false);
  }
}

void check_attention_contents(const char* op, const Tensor& key, const Tensor& seq_lens,
                              const OptionalTensor& block_table) {
  const int64_t slots = cache_slots(key, block_table);
  const Tensor lens = seq_lens.defined() ? in_host_memory(seq_lens) : seq_lens;
  if (lens.defined()) check_seq_lens(op, lens, slots);
  if (!block_table) return;
  const Tensor table = in_host_memory(*block_table);
  for (int64_t b = 0; b < table.size(0); ++b) {
    const int64_t used = lens.defined() ? lens.const_data_ptr<int64_t>()[b] : slots;
    check_pages(op, table, b, 0, used, row_slots(key).expect_int(), key.size(0));
  }
}

void check_append_contents(const Tensor& key_cache, const Tensor& key, const Tensor& positions,
                           const AppendOptions& o) {
  const Tensor first = in_host_memory(positions);
  const int64_t T = key.size(2);
  check_positions(first, T, cache_slots(key_cache, o.block_table));
  if (o.block_table) {
    const Tensor table = in_host_memory(*o.block_table);
    for (int64_t b = 0; b < table.size(0); ++b) {
      const int64_t begin = first.const_data_ptr<int64_t>()[b];
      check_pages("kv_append", table, b, begin, begin + T, row_slots(key_cache).expect_int(),
                  key_cache.size(0));
    }
  }
  for (const auto& [name, scale] :
       {std::pair<const char*, const OptionalTensor&>{"key_scale", o.key_scale},
        {"value_scale", o.value_scale}}) {
    if (scale && is_per_head(*scale)) check_head_scale(name, in_host_memory(*scale));
  }
}

}  // namespace mqa
