// What is checked on CUDA beyond what all devices have in common.
#pragma once

#include "../checks.h"
#include "../kernels/params.h"

namespace mqa::cuda {

// Kernels compute in float32.
void check_not_float64(const char* op, const char* name, const Tensor& tensor);

// The environment variable MQA_DEBUG is 1: read the contents of seq_lens, positions, block_table
// and scales, which waits for the device, and check them as on CPU. By default nothing is read
// back: the kernels leave alone what lies outside of a cache.
bool checks_contents();

// That the kernels take head_dims up to these.
void check_head_dims(const char* op, const Tensor& query, const Tensor& value, int64_t most,
                     int64_t most_of_values);

// The kernels count a sequence's slots, and a KV head's rows, in int.
void check_counts(const char* op, const kernels::AttentionParams& params);

}  // namespace mqa::cuda
