// Rows quantised to codes of 8 bits, for the ISA this file is compiled for: their largest
// magnitude, then a division, a rounding and the low byte of every lane.
//
// Time: with AVX-512 half of it are the divisions. The reciprocal and two corrections by fused
// multiply-adds would give the same bits, and were no faster.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "../formats.h"
#include "simd.h"

namespace mqa::kernels::cpu {
namespace {

// What rows of a format are computed in.
template <class Format>
using AccOf = std::conditional_t<std::is_same_v<Format, Float64>, double, float>;

template <int64_t kBytes>
using SignedOf =
    std::conditional_t<kBytes == 8, int64_t, std::conditional_t<kBytes == 4, int32_t, int16_t>>;

// Magnitudes are in the order of their bits, and NaN is above infinity.
template <class From>
AccOf<From> max_magnitude(const typename From::Storage* from, int64_t width) {
  using Bits = SignedOf<sizeof(typename From::Storage)>;
  Bits largest = 0;
  for (int64_t i = 0; i < width; ++i) {
    const Bits magnitude = std::bit_cast<Bits>(from[i]) & std::numeric_limits<Bits>::max();
    largest = largest > magnitude ? largest : magnitude;
  }
  return From::widen(std::bit_cast<typename From::Storage>(largest));
}

// to[i] = from[i] / divisor, rounded; vectorised by the compiler.
template <class From, class To>
void quantise_plainly(const typename From::Storage* from, AccOf<From> divisor, int64_t width,
                      typename To::Storage* to) {
  constexpr int64_t kBlock = 64;
  AccOf<From> row[kBlock];
  int32_t codes[kBlock];
  for (int64_t first = 0; first < width; first += kBlock) {
    const int64_t count = std::min(kBlock, width - first);
    widen_row(From{}, from + first, count, row);
    for (int64_t i = 0; i < count; ++i) codes[i] = To::code(row[i] / divisor);
    for (int64_t i = 0; i < count; ++i) {
      to[first + i] = static_cast<typename To::Storage>(codes[i]);
    }
  }
}

// Compilers spend more on minima with constants and on narrowing lanes of 32 bits to 8 than on all
// the rest, so these are spelled out.
#if defined(__AVX2__)

using Integers = Vector<int32_t>;

#if defined(__AVX512F__)

inline Vector<float> widened(BFloat16, const uint16_t* from) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return (Vector<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
}

inline Vector<float> widened(Float16, const uint16_t* from) {
  return (Vector<float>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

inline Integers smaller(Integers a, Integers b) {
  return (Integers)_mm512_min_epi32((__m512i)a, (__m512i)b);
}
inline Integers larger(Integers a, Integers b) {
  return (Integers)_mm512_max_epi32((__m512i)a, (__m512i)b);
}

// To the nearest integer, even on a tie, of [-127, 127]; NaN gives one that ends in zeros.
inline Integers rounded_to_int8(Vector<float> x) {
  const __m512 below = _mm512_min_ps(_mm512_set1_ps(127), (__m512)x);  // the second one if NaN
  return (Integers)_mm512_cvtps_epi32(_mm512_max_ps(_mm512_set1_ps(-127), below));
}

inline void store_bytes(Integers x, void* to) {
  _mm_storeu_si128(static_cast<__m128i*>(to), _mm512_cvtepi32_epi8((__m512i)x));
}

#else

inline Vector<float> widened(BFloat16, const uint16_t* from) {
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return (Vector<float>)_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16);
}

inline Vector<float> widened(Float16, const uint16_t* from) {
  return (Vector<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

inline Integers smaller(Integers a, Integers b) {
  return (Integers)_mm256_min_epi32((__m256i)a, (__m256i)b);
}
inline Integers larger(Integers a, Integers b) {
  return (Integers)_mm256_max_epi32((__m256i)a, (__m256i)b);
}

inline Integers rounded_to_int8(Vector<float> x) {
  const __m256 below = _mm256_min_ps(_mm256_set1_ps(127), (__m256)x);
  return (Integers)_mm256_cvtps_epi32(_mm256_max_ps(_mm256_set1_ps(-127), below));
}

inline void store_bytes(Integers x, void* to) {
  const __m256i lowest = _mm256_setr_epi8(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12,  //
                                          0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
  const __m256i bytes = _mm256_shuffle_epi8((__m256i)x, lowest);
  _mm_storel_epi64(
      static_cast<__m128i*>(to),
      _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
}

#endif

inline Vector<float> widened(Float32, const float* from) { return load(from); }

inline Integers codes(Int8, Vector<float> x) { return rounded_to_int8(x); }

// As float8_code, in fewer operations: only the low byte counts, so the bias of the exponent is a
// number of units that the sum rounds to as well.
inline Integers codes(Float8E4M3, Vector<float> x) {
  constexpr int32_t kNormal = 0x3c800000, kLargest = 0x43e00000;
  constexpr int32_t kBias = -(kNormal >> 20) & 0xff;
  const Integers bits = (Integers)x;
  const Integers magnitude = bits & 0x7fffffff;
  const Integers finite = smaller(magnitude, broadcast(kLargest));
  const Integers exponent = larger(finite & 0x7f800000, broadcast(kNormal));
  const Vector<float> shift = (Vector<float>)(exponent + ((20 << 23) + kBias));
  const Integers number = (Integers)((Vector<float>)finite + shift) + (exponent >> 20);
  const Integers code = magnitude > 0x7f800000 ? broadcast(0x7f) : number;
  return (code & 0x7f) | (bits >> 24 & ~0x7f);
}

#endif

// to[i] = from[i] / divisor, rounded
template <class From, class To>
void quantise(const typename From::Storage* from, AccOf<From> divisor, int64_t width,
              typename To::Storage* to) {
  int64_t i = 0;
#if defined(__AVX2__)
  if constexpr (!std::is_same_v<From, Float64>) {
    for (; i + kLanes<float> <= width; i += kLanes<float>) {
      store_bytes(codes(To{}, widened(From{}, from + i) / divisor), to + i);
    }
  }
#endif
  quantise_plainly<From, To>(from + i, divisor, width - i, to + i);
}

}  // namespace
}  // namespace mqa::kernels::cpu
