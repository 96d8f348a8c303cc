// Turns tensors and options, already checked, into the kernels' params.
#pragma once

#include "kernels/params.h"
#include "signature.h"

namespace mqa {

// The tensors that params point into, which have to outlive the kernel.
struct AttentionCall {
  kernels::AttentionParams params;
  Tensor out, lse;
  // Copies where the kernels need another dtype or a contiguous last dimension; else the inputs.
  Tensor query, key, value, mask, seq_lens, alibi_slopes, sinks;
};

// Without results.
AttentionCall attention_inputs(const Tensor& query, const Tensor& key, const Tensor& value,
                               const AttentionOptions& options);

AttentionCall attention_call(const Tensor& query, const Tensor& key, const Tensor& value,
                             const AttentionOptions& options, bool want_lse);

struct BackwardCall {
  AttentionCall forward;
  Tensor grad_out, grad_lse, out, lse;
  // Undefined where not wanted. Those of key and value are [B, H_kv, S, D], also for pages. The
  // mask's is in the accumulation dtype, for pages the keys' and values' are, too.
  Tensor grad_query, grad_key, grad_value, grad_mask;
  bool wants_sinks;
  Tensor row_sums;
  kernels::BackwardParams params;
};

BackwardCall backward_call(const BackwardInputs& inputs, const Tensor& query, const Tensor& key,
                           const Tensor& value, const AttentionOptions& options);

struct AppendCall {
  kernels::AppendParams params;
  Tensor key, value, positions;
};

AppendCall append_call(const Tensor& key_cache, const Tensor& value_cache, const Tensor& key,
                       const Tensor& value, const Tensor& positions, const AppendOptions& options);

kernels::DType kernel_dtype(const Tensor& tensor);

// float32, or float64 for float64: what scores are accumulated in, and the dtype of lse.
at::ScalarType accumulation_dtype(const Tensor& tensor);

// The factor of the scores: the given one, or 1 / sqrt(D).
double score_scale(const AttentionOptions& options, int64_t D);

// Keys [B, H_kv, S / 16, D, 16], or a pool of them.
bool is_packed(const Tensor& key);

// That sixteen slots of packed keys are one piece of memory, as kernels have to find them.
bool has_contiguous_groups(const Tensor& key);

// Packed keys in order, [B, H_kv, S, D].
Tensor unpacked(const Tensor& key);

// The slots of a batch row or a page: S, or page_size.
c10::SymInt row_slots(const Tensor& key);

// How many slots a cache row has: S, or with a block table pages * page_size.
int64_t cache_slots(const Tensor& key, const OptionalTensor& block_table);

}  // namespace mqa
