#pragma once

#include <torch/csrc/jit/api/module.h>

#include <cstdint>

// Changes the number of KV heads of a decoder exported by mqa.export_torchscript, as mqa.convert
// does: fewer heads are the means of neighbouring ones, more heads are repetitions. Throws
// UserError for a number that does not divide `num_heads`, or neither divides the present number
// nor is a multiple of it.
void convert_kv_heads(torch::jit::Module& decoder, int64_t num_heads, int64_t num_kv_heads);
