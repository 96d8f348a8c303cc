// Validation of the ops' arguments, shared by CPU, CUDA and Meta: the same message from every door.
// A message names the op, the argument, what was expected and what was got.
#pragma once

#include "signature.h"

namespace mqa {

// Shapes, dtypes, devices and options: nothing that needs a tensor's contents. `op` is the name
// after "mqa::".
void check_attention(const char* op, const Tensor& query, const Tensor& key, const Tensor& value,
                     const AttentionOptions& options);
void check_attention_backward(const BackwardInputs& inputs, const Tensor& query, const Tensor& key,
                              const Tensor& value, const AttentionOptions& options);
void check_merge(at::TensorList outs, at::TensorList lses);
void check_kv_append(const Tensor& key_cache, const Tensor& value_cache, const Tensor& key,
                     const Tensor& value, const Tensor& positions, const AppendOptions& options);

// That kv_append can write to the caches, and to scales per token, where they lie.
void check_append_memory(const Tensor& key_cache, const Tensor& value_cache,
                         const AppendOptions& options);

// Contents. seq_lens (or undefined) and positions are int64 and contiguous. Tensors that are not in
// host memory are copied, which waits for their device.
void check_attention_contents(const char* op, const Tensor& key, const Tensor& seq_lens,
                              const OptionalTensor& block_table);
void check_append_contents(const Tensor& key_cache, const Tensor& key, const Tensor& positions,
                           const AppendOptions& options);

// int8 or float8_e4m3fn: stored with scales.
bool is_quantized(const Tensor& cache);

}  // namespace mqa
