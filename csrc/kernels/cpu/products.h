// What vector instructions multiply: elements of queries, keys, weights and values, as lanes hold
// them and as memory does.
#pragma once

#include <algorithm>
#include <cstring>

#include "cache_tiles.h"
#include "partial.h"

namespace mqa::kernels::cpu {
namespace {

// One element of Acc at a time.
template <class A>
struct PlainProducts {
  using Acc = A;
  using Stored = A;   // keys and values in memory
  using Packed = A;   // a packed query's values
  using Element = A;  // what a lane multiplies at once: kStep values
  static constexpr int64_t kStep = 1;
  static constexpr bool kExactWeights = true;

  static Vector<Element> load(const Stored* from) { return kernels::load(from); }

  static Vector<Acc> multiply_add(Vector<Element> a, Vector<Element> b, Vector<Acc> c) {
    return kernels::multiply_add(a, b, c);
  }

  static void finish(const AttentionParams& p, const RowTile& tile, const Partial<Acc>& total) {
    cpu::finish(p, tile, total);
  }
};

inline Vector<float> widen(const BFloat16Bits* from) {
  HalfVector x;
  std::memcpy(&x, from, sizeof x);
  return (Vector<float>)(__builtin_convertvector(x, Vector<uint32_t>) << 16);
}

inline Vector<float> widen(const Float16Bits* from) {
#if defined(__AVX512F__)
  return (Vector<float>)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__F16C__)
  return (Vector<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#else
  Vector<float> x;
  for (int i = 0; i < kLanes<float>; ++i) x[i] = float16_to_float(from[i].bits);
  return x;
#endif
}

// The same, of keys and values of 16 bits.
template <class S>
struct WidenedProducts : PlainProducts<float> {
  using Stored = S;

  static Vector<Element> load(const Stored* from) { return widen(from); }
};

#if defined(__AVX512BF16__)

// Two vectors of values that are exact in bfloat16: 32 of them, or 16.
inline __m512i bfloat16_at(const BFloat16Bits* from) { return _mm512_loadu_si512(from); }
inline __m256i bfloat16_half_at(const BFloat16Bits* from) {
  return _mm256_loadu_si256((const __m256i*)from);
}

inline __m512 float_at(const int8_t* from) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
}
inline __m512i bfloat16_at(const int8_t* from) {
  return (__m512i)_mm512_cvtne2ps_pbh(float_at(from + kGroupRows), float_at(from));
}
inline __m256i bfloat16_half_at(const int8_t* from) {
  return (__m256i)_mm512_cvtneps_pbh(float_at(from));
}

// Puts the columns of strips of 32 in order: their first half holds every other four.
inline void restore_columns(const AttentionParams& p, int64_t rows, const Partial<float>& total) {
  constexpr int64_t kStrip = 2 * kGroupRows, kRun = 4;
  const int64_t width = padded(p.D_v);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t d = 0; d + kStrip <= width; d += kStrip) {
      float* strip = total.out + r * width + d;
      float ordered[kStrip];
      for (int64_t i = 0; i < kGroupRows; i += kRun) {
        std::copy_n(strip + i, kRun, ordered + 2 * i);
        std::copy_n(strip + kGroupRows + i, kRun, ordered + 2 * i + kRun);
      }
      std::copy_n(ordered, kStrip, strip);
    }
  }
}

// Pairs of bfloat16, summed in float32: neighbours in a key, and two keys' values.
template <class S>
struct PairProducts {
  using Acc = float;
  using Stored = S;
  using Packed = BFloat16Bits;
  using Element = uint32_t;
  static constexpr int64_t kStep = 2;
  static constexpr bool kExactWeights = false;

  static Vector<Element> load(const Stored* from) { return (Vector<Element>)bfloat16_at(from); }
  static Vector<Element> load_half(const Stored* from) {  // then zeros
    return (Vector<Element>)_mm512_zextsi256_si512(bfloat16_half_at(from));
  }

  static Vector<Acc> multiply_add(Vector<Element> a, Vector<Element> b, Vector<Acc> c) {
    return (Vector<Acc>)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
  }

  // Values of two keys side by side, for a strip of columns. A strip of 32 comes out of order.
  static void interleave(const Stored* a, const Stored* b, Vector<Element> (&to)[1]) {
    const __m256i first = bfloat16_half_at(a), second = bfloat16_half_at(b);
    to[0] = side_by_side(&first, &second);
  }
  template <int kVectors>
  static void interleave(const Stored* a, const Stored* b, Vector<Element> (&to)[kVectors]) {
    static_assert(kVectors % 2 == 0);
    for (int v = 0; v < kVectors; v += 2) {
      const __m512i first = bfloat16_at(a + v * kGroupRows),
                    second = bfloat16_at(b + v * kGroupRows);
      to[v] = (Vector<Element>)_mm512_unpacklo_epi16(first, second);
      to[v + 1] = (Vector<Element>)_mm512_unpackhi_epi16(first, second);
    }
  }

  static void finish(const AttentionParams& p, const RowTile& tile, const Partial<Acc>& total) {
    restore_columns(p, tile.rows, total);
    cpu::finish(p, tile, total);
  }
};

#endif

// Calls body(products) with those that read keys and values as the cache has them, as far as there
// are any, and give the same bits as Products.
template <class Products, class Body>
inline void with_stored(const AttentionParams& p, const Body& body) {
  const DType dtype = p.key.dtype == p.value.dtype ? p.key.dtype : DType::kFloat64;
  if constexpr (std::is_same_v<Products, PlainProducts<float>>) {
    if (dtype == DType::kFloat16) return body(WidenedProducts<Float16Bits>());
    if (dtype == DType::kBFloat16) return body(WidenedProducts<BFloat16Bits>());
  }
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<Products, PairProducts<BFloat16Bits>>) {
    if (dtype == DType::kInt8) return body(PairProducts<int8_t>());
  }
#endif
  body(Products());
}

}  // namespace
}  // namespace mqa::kernels::cpu
