// Loops that keep one unit of a core busy, each compiled for the instruction set that it needs.
#pragma once

#include <cstdint>

namespace mqa::floor {

// `run` repeats the loop's body, which does `work` operations, that often.
struct Probe {
  int64_t work = 0;
  void (*run)(int64_t iterations) = nullptr;  // null: the machine lacks the unit
};

// Reads floats from memory that is aligned to 64 bytes. `count` is a multiple of kReadStep.
constexpr int64_t kReadStep = 128;
using Read = float (*)(const float* data, int64_t count);

// Compiled once per width of vectors.
#define MQA_DECLARE_PROBES(isa)                                                            \
  namespace isa {                                                                          \
  extern const Read read;                                                                  \
  extern const Probe float32_fma;  /* flops: two per multiply-add */                       \
  extern const Probe exp_float32;  /* 2^x within 1e-7 of its value, from L1 to L1 */       \
  extern const Probe exp_bfloat16; /* 2^x within 1e-4: enough to be rounded to bfloat16 */ \
  }
MQA_DECLARE_PROBES(generic)
MQA_DECLARE_PROBES(avx2)
MQA_DECLARE_PROBES(avx512)
#undef MQA_DECLARE_PROBES

extern const Probe bfloat16_dot;  // flops of vdpbf16ps
extern const Probe bfloat16_amx;  // flops of tdpbf16ps

}  // namespace mqa::floor
