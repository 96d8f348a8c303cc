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
  static constexpr bool kScaled = false;

  // Of a row's elements, or of runs of several rows.
  template <int kRuns = 1>
  static Vector<Element> load(const void* const* from) {
    return (Vector<Element>)load_runs<kVectorBytes, kRuns>(from);
  }

  static Vector<Acc> multiply_add(Vector<Element> a, Vector<Element> b, Vector<Acc> c) {
    return kernels::multiply_add(a, b, c);
  }

  static void finish(const AttentionParams& p, const RowTile& tile, const Partial<Acc>& total) {
    cpu::finish(p, tile, total);
  }
};

// The same, of keys and values of 16 bits, or of 8 with scales.
template <class S>
struct WidenedProducts : PlainProducts<float> {
  using Stored = S;
  static constexpr bool kScaled = sizeof(S) == 1;

  template <int kRuns = 1>
  static Vector<Element> load(const void* const* from) {
    return widen(load_runs<sizeof(StoredLanes<S>), kRuns>(from), S());
  }
};

#if defined(__AVX512BF16__)

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

constexpr float kUnscaled[2] = {1, 1};

// Pairs of bfloat16, summed in float32: neighbours in a key, and two keys' values.
template <class S>
struct PairProducts {
  using Acc = float;
  using Stored = S;
  using Packed = BFloat16Bits;
  using Element = uint32_t;
  static constexpr int64_t kStep = 2;
  static constexpr bool kExactWeights = false;
  static constexpr bool kScaled = !std::is_same_v<Stored, BFloat16Bits>;  // values

  template <int kRuns = 1>
  static Vector<Element> load(const void* const* from) {
    return (Vector<Element>)bfloat16_of_runs<kRuns>(from, Stored());
  }

  static Vector<Acc> multiply_add(Vector<Element> a, Vector<Element> b, Vector<Acc> c) {
    return (Vector<Acc>)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
  }

  // A strip of two keys' values side by side, times the keys' scales. 32 columns come out of order.
  static void interleave(const Stored* a, const Stored* b, Vector<Element> (&to)[1],
                         const float* scales = kUnscaled) {
    const __m256i first = bfloat16_half_at(a, scales), second = bfloat16_half_at(b, scales + 1);
    to[0] = side_by_side(&first, &second);
  }
  template <int kVectors>
  static void interleave(const Stored* a, const Stored* b, Vector<Element> (&to)[kVectors],
                         const float* scales = kUnscaled) {
    static_assert(kVectors % 2 == 0);
    for (int v = 0; v < kVectors; v += 2) {
      const __m512i first = bfloat16_at(a + v * kGroupRows, scales),
                    second = bfloat16_at(b + v * kGroupRows, scales + 1);
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
#if defined(__AVX2__)
    if (dtype == DType::kInt8) return body(WidenedProducts<Int8Bits>());
    if (dtype == DType::kFloat8E4M3) return body(WidenedProducts<Float8Bits>());
#endif
  }
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<Products, PairProducts<BFloat16Bits>>) {
    if (dtype == DType::kInt8) return body(PairProducts<Int8Bits>());
    if (dtype == DType::kFloat8E4M3) return body(PairProducts<Float8Bits>());
  }
#endif
  body(Products());
}

}  // namespace
}  // namespace mqa::kernels::cpu
