// The machine's widest vector of Acc (float or double) for the ISA this file is compiled for, with
// the few operations that GCC's and clang's vector extensions lack.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace mqa::kernels {
namespace {  // internal linkage: every ISA's copy stays its own

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kVectorRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kVectorRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16;
constexpr int kVectorRegisters = 32;
#else
constexpr int kVectorBytes = 16;
constexpr int kVectorRegisters = 16;
#endif

template <class Acc>
struct VectorOf {
  typedef Acc type __attribute__((vector_size(kVectorBytes)));
};
template <class Acc>
using Vector = typename VectorOf<Acc>::type;

template <class Acc>
constexpr int kLanes = kVectorBytes / sizeof(Acc);

// To be called before returning to code for another ISA. gcc 12 leaves it out where only the
// registers that AVX-512 added are dirty, and each switch to SSE code then costs 300 cycles
// (Sapphire Rapids).
inline void clear_upper_lanes() {
#if defined(__AVX__)
  _mm256_zeroupper();
#endif
}

template <class Acc>
inline Vector<Acc> load(const Acc* from) {
  Vector<Acc> x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

template <class Acc>
inline void store(Acc* to, Vector<Acc> x) {
  std::memcpy(to, &x, sizeof x);
}

template <class Acc>
inline Vector<Acc> broadcast(Acc x) {
  return x - Vector<Acc>{};  // which compilers know to be x; x + 0 would not be for x = -0
}

template <class V>
inline V maximum(V a, V b) {
  return a > b ? a : b;
}

// a * b + c, in one rounding where the ISA has it. The build turns contraction off, so that nothing
// else is ever fused and a row's bits do not depend on the compiler's mood.
template <class V>
inline V multiply_add(V a, V b, V c) {
#if defined(__AVX512F__)
  if constexpr (sizeof(a[0]) == 4) return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
  return (V)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
  if constexpr (sizeof(a[0]) == 4) return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  return (V)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__aarch64__)
  if constexpr (sizeof(a[0]) == 4) {
    return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
  }
  return (V)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
  return a * b + c;
#endif
}

// Lanes first, first + 1, ... of x, as many as there are i.
template <int first, class V, int... i>
inline auto some_lanes(V x, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(x, x, (first + i)...);
}

template <class V>
inline auto max_lanes(V x) {
  constexpr int half = sizeof(V) / sizeof(x[0]) / 2;
  if constexpr (half == 1) {
    return x[0] > x[1] ? x[0] : x[1];
  } else {
    constexpr std::make_integer_sequence<int, half> lanes;
    return max_lanes(maximum(some_lanes<0>(x, lanes), some_lanes<half>(x, lanes)));
  }
}

// 2^x for x <= 0: exactly 1 at 0 and exactly 0 below the smallest normal number; NaN stays NaN.
// x = n + r with an integer n and 0 <= r <= 1; 2^r by a polynomial with the least relative error,
// which is 9e-8 for kExact and 3e-6, enough for weights that are rounded to 16 bits, without.
template <bool kExact>
inline Vector<float> exp2_nonpositive(Vector<float> x) {
#if defined(__AVX512F__)
  const Vector<float> r = (Vector<float>)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF);
#else
  typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));
  constexpr float kRound = 0x1.8p23f;  // adding it leaves an integer in the low mantissa bits
  const Vector<float> shifted = (x - 0.5f) + kRound;
  const Vector<float> r = x - (shifted - kRound);
#endif
  Vector<float> power;
  if constexpr (kExact) {
    power = broadcast(0x1.e96912p-10f);
    for (float c : {0x1.277c1cp-7f, 0x1.c91c10p-5f, 0x1.ebdb6ap-3f, 0x1.62e4bap-1f, 1.f}) {
      power = multiply_add(power, r, broadcast(c));
    }
  } else {
    power = broadcast(0x1.b7f764p-7f);
    for (float c : {0x1.abf852p-5f, 0x1.ee2454p-3f, 0x1.62d6c6p-1f, 1.f}) {
      power = multiply_add(power, r, broadcast(c));
    }
  }
#if defined(__AVX512F__)
  const __mmask16 normal = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-126), _CMP_NLT_UQ);
  return (Vector<float>)_mm512_maskz_scalef_ps(normal, (__m512)power, (__m512)x);
#else
  const Bits exponent = ((Bits)shifted - std::bit_cast<uint32_t>(kRound) + 127) << 23;
  return x < -126.f ? Vector<float>{} : power * (Vector<float>)exponent;
#endif
}

template <bool kExact>
inline Vector<double> exp2_nonpositive(Vector<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp2(x[i]);
  return x;
}

typedef uint16_t HalfVector __attribute__((vector_size(kVectorBytes / 2)));

// gcc 12 widens in quarters.
inline Vector<uint32_t> widened(HalfVector x) {
#if defined(__AVX512F__)
  return (Vector<uint32_t>)_mm512_cvtepu16_epi32((__m256i)x);
#elif defined(__AVX2__)
  return (Vector<uint32_t>)_mm256_cvtepu16_epi32((__m128i)x);
#else
  return __builtin_convertvector(x, Vector<uint32_t>);
#endif
}

// As many 16-bit values as lanes from each address, side by side: a's in the lower half of a lane.
inline Vector<uint32_t> side_by_side(const void* a, const void* b) {
  HalfVector first, second;
  std::memcpy(&first, a, sizeof first);
  std::memcpy(&second, b, sizeof second);
  return widened(first) | widened(second) << 16;
}

// Weights in [0, 1] rounded to bfloat16, half way up, in the lower half of each lane.
inline Vector<uint32_t> bfloat16_of(Vector<float> weights) {
  return ((Vector<uint32_t>)weights + 0x8000) >> 16;
}

// bfloat16_of(first) in the lower half of each lane, bfloat16_of(second) in the upper one.
inline Vector<uint32_t> bfloat16_pairs(Vector<float> first, Vector<float> second) {
  return bfloat16_of(first) | (((Vector<uint32_t>)second + 0x8000) & 0xffff0000);
}

// Within 2 ulp: (1 - e) / (1 + e) with e = exp(-2 |x|), and the Taylor series where 1 - e cancels.
inline Vector<float> tanh_of(Vector<float> x) {
  const Vector<float> magnitude = x < 0 ? -x : x;
  const Vector<float> e = exp2_nonpositive<true>(magnitude * -0x1.715476p1f);  // exp(-2 |x|)
  const Vector<float> large = (1 - e) / (1 + e);
  const Vector<float> square = x * x;
  Vector<float> series = broadcast(62.f / 2835);
  for (float coefficient : {-17.f / 315, 2.f / 15, -1.f / 3, 1.f}) {
    series = multiply_add(series, square, broadcast(coefficient));
  }
  return magnitude < 0.3f ? series * x : x < 0 ? -large : large;
}

inline Vector<double> tanh_of(Vector<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::tanh(x[i]);
  return x;
}

}  // namespace
}  // namespace mqa::kernels
