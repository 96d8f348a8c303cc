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
#endif

namespace mqa::kernels {
namespace {  // internal linkage: every ISA's copy stays its own

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kVectorRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kVectorRegisters = 16;
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
  return Vector<Acc>{} + x;
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
#else
  return a * b + c;
#endif
}

// Of each run of kCount lanes: one half of a's run, then the same half of b's.
template <class Acc, int kCount, bool kUpperHalf, int... i>
inline Vector<Acc> halves(Vector<Acc> a, Vector<Acc> b, std::integer_sequence<int, i...>) {
  constexpr int kHalf = kCount / 2;
  return __builtin_shufflevector(a, b,
                                 ((i % kCount < kHalf ? 0 : kLanes<Acc>)+i / kCount * kCount +
                                  i % kHalf + (kUpperHalf ? kHalf : 0))...);
}

// Lane i of the result is the sum over the lanes of x[i], for as many vectors as a vector has
// lanes. Each sum folds the upper half of its lanes onto the lower half until one is left; vectors
// i and i + kCount / 2 share a vector from there on, so that all of them cost little more than one
// each.
template <class Acc, int kCount = kLanes<Acc>>
inline Vector<Acc> sum_lanes_of_each(const Vector<Acc>* x) {
  if constexpr (kCount == 1) {
    return x[0];
  } else {
    constexpr std::make_integer_sequence<int, kLanes<Acc>> kAll;
    Vector<Acc> folded[kCount / 2];
    for (int i = 0; i < kCount / 2; ++i) {
      const Vector<Acc> a = x[i], b = x[i + kCount / 2];
      folded[i] = halves<Acc, kCount, false>(a, b, kAll) + halves<Acc, kCount, true>(a, b, kAll);
    }
    return sum_lanes_of_each<Acc, kCount / 2>(folded);
  }
}

template <class Acc>
inline Acc sum_lanes(Vector<Acc> x) {
  Vector<Acc> all[kLanes<Acc>];
  for (Vector<Acc>& same : all) same = x;
  return sum_lanes_of_each<Acc>(all)[0];
}

template <class Acc>
inline Acc max_lanes(Vector<Acc> x) {
  Acc result = x[0];
  for (int i = 1; i < kLanes<Acc>; ++i) result = result > x[i] ? result : x[i];
  return result;
}

// e^x for x <= 0, within 2 ulp; exactly 1 at 0 and exactly 0 below the smallest normal number. NaN
// stays NaN. x = n ln 2 + r with |r| <= ln(2) / 2; e^r by its Taylor series, 2^n by the exponent
// bits.
inline Vector<float> exp_nonpositive(Vector<float> x) {
  typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));
  constexpr float kRound =
      0x1.8p23f;  // adding it rounds to an integer, kept in the low mantissa bits
  constexpr float kLog2E = 0x1.715476p0f, kLn2High = 0x1.62e400p-1f, kLn2Low = 0x1.7f7d1cp-20f;
  const Vector<float> shifted = multiply_add(x, broadcast(kLog2E), broadcast(kRound));
  const Vector<float> n = shifted - kRound;
  const Vector<float> r =
      multiply_add(n, broadcast(-kLn2Low), multiply_add(n, broadcast(-kLn2High), x));
  Vector<float> series = broadcast(1.f / 5040);
  for (float coefficient : {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 1.f / 2, 1.f, 1.f}) {
    series = multiply_add(series, r, broadcast(coefficient));
  }
  const Bits exponent = ((Bits)shifted - std::bit_cast<uint32_t>(kRound) + 127) << 23;
  const Vector<float> result = series * (Vector<float>)exponent;
  return x < -87.33654f ? Vector<float>{} : result;
}

inline Vector<double> exp_nonpositive(Vector<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

// Within 2 ulp: (1 - e) / (1 + e) with e = exp(-2 |x|), and the Taylor series where 1 - e cancels.
inline Vector<float> tanh_of(Vector<float> x) {
  const Vector<float> magnitude = x < 0 ? -x : x;
  const Vector<float> e = exp_nonpositive(-2 * magnitude);
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
