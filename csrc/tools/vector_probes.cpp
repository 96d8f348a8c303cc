// The probes that exist for every width of vectors: reads, multiply-adds and exponentials.
#include "kernels/cpu/simd.h"
#include "probes.h"

namespace mqa::floor::MQA_ISA {
namespace {

using kernels::broadcast;
using kernels::clear_upper_lanes;
using kernels::multiply_add;
using Vec = kernels::Vector<float>;
constexpr int kLanes = kernels::kLanes<float>;

// Keeps a value that nothing uses.
void keep(const Vec& x) { asm volatile("" : : "m"(x)); }

float read_all(const float* data, int64_t count) {
  constexpr int kChains = 8;  // independent sums hide an addition's latency
  static_assert(kReadStep % (kChains * kLanes) == 0);
  Vec sums[kChains] = {};
  for (int64_t i = 0; i < count; i += kChains * kLanes) {
#pragma GCC unroll 8
    for (int chain = 0; chain < kChains; ++chain) {
      sums[chain] += kernels::load(data + i + chain * kLanes);
    }
  }
  Vec total = sums[0];
  for (int chain = 1; chain < kChains; ++chain) total += sums[chain];
  const float result = total[0];
  clear_upper_lanes();
  return result;
}

constexpr int kFmaChains = 12;

void fma(int64_t iterations) {
  Vec factor = broadcast(0.5f), summand = broadcast(1.f);
  asm volatile("" : "+m"(factor), "+m"(summand));  // unknown to the compiler from here on
  Vec sums[kFmaChains];
  for (int chain = 0; chain < kFmaChains; ++chain) {
    sums[chain] = broadcast(static_cast<float>(chain));  // all different, or they would be merged
  }
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (int chain = 0; chain < kFmaChains; ++chain) {
      sums[chain] = multiply_add(sums[chain], factor, summand);
    }
  }
  for (const Vec& sum : sums) keep(sum);
  clear_upper_lanes();
}

// 2^x for x <= 0 as the integer below x and a polynomial in the rest. The coefficients, from the
// highest, have the least relative error on [0, 1] with the last one fixed to 1.
template <int kDegree>
Vec exp2_polynomial(Vec x, const float (&coefficients)[kDegree + 1]) {
#if defined(__AVX512F__)
  const Vec rest = (Vec)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF);
#else
  typedef uint32_t Bits __attribute__((vector_size(kernels::kVectorBytes)));
  constexpr float kRound = 0x1.8p23f;  // adding it leaves an integer in the low mantissa bits
  x = x < -126.f ? broadcast(-126.f) : x;
  const Vec shifted = (x - 0.5f) + kRound;
  const Vec rest = x - (shifted - kRound);
#endif
  Vec power = broadcast(coefficients[0]);
#pragma GCC unroll 8
  for (int i = 1; i <= kDegree; ++i) {
    power = multiply_add(power, rest, broadcast(coefficients[i]));
  }
#if defined(__AVX512F__)
  return (Vec)_mm512_scalef_ps((__m512)power, (__m512)x);
#else
  return (Vec)((Bits)power + ((Bits)shifted << 23));
#endif
}

constexpr int64_t kExps = 2048;  // in L1 together with their results

template <int kDegree>
void exp2_all(int64_t iterations, const float (&coefficients)[kDegree + 1]) {
  alignas(64) float from[kExps], to[kExps];
  for (int64_t i = 0; i < kExps; ++i) from[i] = -static_cast<float>(i % 32) * 0.7f;
  for (int64_t iteration = 0; iteration < iterations; ++iteration) {
#pragma GCC unroll 4
    for (int64_t i = 0; i < kExps; i += kLanes) {
      kernels::store(to + i, exp2_polynomial<kDegree>(kernels::load(from + i), coefficients));
    }
    asm volatile("" : "+m"(from), "+m"(to));  // the next iteration computes again
  }
  clear_upper_lanes();
}

void exp2_float32(int64_t iterations) {
  exp2_all<5>(iterations, {0x1.e96912p-10f, 0x1.277c1cp-7f, 0x1.c91c10p-5f, 0x1.ebdb6ap-3f,
                           0x1.62e4bap-1f, 1.f});
}

void exp2_bfloat16(int64_t iterations) {
  exp2_all<3>(iterations, {0x1.3baac4p-4f, 0x1.d23778p-3f, 0x1.63e65ap-1f, 1.f});
}

}  // namespace

const Read read = read_all;
const Probe float32_fma = {2 * kFmaChains * kLanes, fma};
const Probe exp_float32 = {kExps, exp2_float32};
const Probe exp_bfloat16 = {kExps, exp2_bfloat16};

}  // namespace mqa::floor::MQA_ISA
