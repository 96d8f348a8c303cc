#include <immintrin.h>

#include "probes.h"

namespace mqa::floor {
namespace {

constexpr int kChains = 12;

void dot(int64_t iterations) {
  __m512bh a = {}, b = {};
  asm volatile("" : "+m"(a), "+m"(b));  // unknown to the compiler from here on
  __m512 sums[kChains];
  for (int chain = 0; chain < kChains; ++chain) {
    sums[chain] =
        _mm512_set1_ps(static_cast<float>(chain));  // all different, or they would be merged
  }
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (int chain = 0; chain < kChains; ++chain) {
      sums[chain] = _mm512_dpbf16_ps(sums[chain], a, b);
    }
  }
  for (const __m512& sum : sums) asm volatile("" : : "m"(sum));
  _mm256_zeroupper();
}

}  // namespace

constexpr int kFlopsPerDot = 16 * 2 * 2;  // lanes, pairs, multiply and add
const Probe bfloat16_dot = {kChains * kFlopsPerDot, dot};

}  // namespace mqa::floor
