// Validation of the ops' arguments, shared by CPU, CUDA and Meta: the same message from every door.
// A message names the op, the argument, what was expected and what was got.
#pragma once

#include "signature.h"

namespace mqa {

// Shapes, dtypes, devices and options: nothing that needs a tensor's contents. `op` is the name
// after "mqa::".
void check_attention(const char* op, const Tensor& query, const Tensor& key, const Tensor& value,
                     const AttentionOptions& options);
void check_merge(at::TensorList outs, at::TensorList lses);
void check_kv_append(const Tensor& key_cache, const Tensor& value_cache, const Tensor& key,
                     const Tensor& value, const Tensor& positions, const AppendOptions& options);

// Contents, for tensors in host memory. seq_lens and positions are int64 and contiguous.
void check_seq_lens(const char* op, const Tensor& seq_lens, int64_t slots);
void check_positions(const Tensor& positions, int64_t tokens, int64_t capacity);
// Of row `batch`, the entries of the pages that hold slots [begin, end).
void check_pages(const char* op, const Tensor& block_table, int64_t batch, int64_t begin,
                 int64_t end, int64_t page_size, int64_t num_pages);
void check_head_scale(const char* name, const Tensor& scale);

// That kv_append can write to the tensor where it lies.
void check_writable(const char* name, const Tensor& tensor, bool contiguous_rows);

// int8 or float8_e4m3fn: stored with scales.
bool is_quantized(const Tensor& cache);

}  // namespace mqa
