// Blocks of rows transposed in registers, by the shuffles that machines do fastest.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "simd.h"

namespace mqa::kernels {
namespace {

template <int kBytes>
struct BytesOf {
  using Word = std::conditional_t<kBytes == 4, uint32_t, uint64_t>;
  typedef Word type __attribute__((vector_size(kBytes)));
};
template <int kBytes>
using Bytes = typename BytesOf<kBytes>::type;

// a, then b.
#if defined(__AVX2__)
inline Bytes<8> joined(Bytes<4> a, Bytes<4> b) {
  return Bytes<8>{a[0] | static_cast<uint64_t>(b[0]) << 32};
}
inline Bytes<16> joined(Bytes<8> a, Bytes<8> b) { return Bytes<16>{a[0], b[0]}; }
inline Bytes<32> joined(Bytes<16> a, Bytes<16> b) {
  return (Bytes<32>)_mm256_inserti128_si256(_mm256_castsi128_si256((__m128i)a), (__m128i)b, 1);
}
#endif
#if defined(__AVX512F__)
inline Bytes<64> joined(Bytes<32> a, Bytes<32> b) {
  return (Bytes<64>)_mm512_inserti64x4(_mm512_castsi256_si512((__m256i)a), (__m256i)b, 1);
}
#endif

// kBytes from kRuns addresses, as many from each: a load puts its run in place, which saves the
// shuffles that would bring it there.
template <int kBytes, int kRuns = 1>
inline Bytes<kBytes> load_runs(const void* const* from) {
  if constexpr (kRuns > 1) {
    return joined(load_runs<kBytes / 2, kRuns / 2>(from),
                  load_runs<kBytes / 2, kRuns / 2>(from + kRuns / 2));
  } else {
    Bytes<kBytes> x;
    std::memcpy(&x, *from, kBytes);
    return x;
  }
}

// Runs of kRun lanes of a and b in turn, from the lower or upper half of each 16 bytes.
template <int kRun, bool kUpper, class V>
inline V interleave_runs(V a, V b) {
  using Run = std::conditional_t<kRun * sizeof(a[0]) == 8, uint64_t, uint32_t>;
  constexpr int n = sizeof(V) / sizeof(Run), part = 16 / sizeof(Run);
  const auto interleave = [&]<int... i>(std::integer_sequence<int, i...>) {
    return (V)__builtin_shufflevector(
        (Vector<Run>)a, (Vector<Run>)b,
        (i / part * part + kUpper * part / 2 + i % part / 2 + (i % 2 ? n : 0))...);
  };
  return interleave(std::make_integer_sequence<int, n>());
}

// Every other 16 bytes of a, then of b.
template <bool kOdd, class V, int... i>
inline V every_other_part(V a, V b, std::integer_sequence<int, i...>) {
  constexpr int n = sizeof...(i), part = 16 * n / sizeof(V);
  return __builtin_shufflevector(a, b, (2 * (i / part * part) + kOdd * part + i % part)...);
}

// Which row the i-th of `vectors` vectors has to hold in its run for `transpose` to bring the rows
// into order. A run has as many lanes as there are vectors.
template <class V>
constexpr int row_of_run(int vectors, int i, int run) {
  constexpr int n = sizeof(V) / sizeof(V{}[0]), part = 16 * n / sizeof(V);
  return (i / part * (n / vectors) + run) * part + i % part;
}

// Makes of vectors that hold a run of each row vectors that hold a lane of each run.
template <int kStep = 1, class V, size_t m>
inline void transpose(V (&x)[m]) {
  constexpr int n = sizeof(V) / sizeof(x[0][0]), part = 16 * n / sizeof(V);
  constexpr std::make_integer_sequence<int, n> lanes;
  if constexpr (kStep < m) {
    for (int i = 0; i < static_cast<int>(m); ++i) {
      if (i & kStep) continue;
      const V a = x[i], b = x[i + kStep];
      if constexpr (kStep < part) {
        x[i] = interleave_runs<kStep, false>(a, b);
        x[i + kStep] = interleave_runs<kStep, true>(a, b);
      } else {
        x[i] = every_other_part<false>(a, b, lanes);
        x[i + kStep] = every_other_part<true>(a, b, lanes);
      }
    }
    transpose<kStep * 2>(x);
  } else if constexpr (part == 4) {  // the interleaved ones have changed places
    for (size_t i = 0; i < m; i += part) std::swap(x[i + 1], x[i + 2]);
  }
}

// What registers transpose: single elements, or as many as 4 bytes hold.
template <class Stored>
using WordOf = std::conditional_t<sizeof(Stored) == 8, uint64_t, uint32_t>;

// The first elements of all lanes' words, then the second ones, and so on.
template <class Stored, int... i>
inline Vector<Stored> first_elements_first(Vector<WordOf<Stored>> words,
                                           std::integer_sequence<int, i...>) {
  constexpr int n = kLanes<WordOf<Stored>>, m = sizeof(words[0]) / sizeof(Stored);
  const auto elements = (Vector<Stored>)words;
  return __builtin_shufflevector(elements, elements, (i % n * m + i / n)...);
}

constexpr int64_t kTransposedRows = 16;

// to[e][16] = rows[16][e] for as many e < width as whole blocks cover, and how many that are.
template <class Stored>
int64_t transpose_rows(const Stored* rows, int64_t stride, int64_t width, Stored* to) {
  using Word = WordOf<Stored>;
  constexpr int n = kLanes<Word>, m = sizeof(Word) / sizeof(Stored);
  constexpr std::make_integer_sequence<int, n * m> lanes;
  const int64_t whole = width / (n * m) * (n * m);
  for (int64_t r = 0; r < kTransposedRows; r += n) {
    for (int64_t e = 0; e < whole; e += n * m) {
      Vector<Word> x[n];
      for (int i = 0; i < n; ++i) {
        std::memcpy(&x[i], rows + (r + i) * stride + e, sizeof x[i]);
      }
      transpose(x);
      for (int i = 0; i < n; ++i) {
        Stored elements[n * m];
        const Vector<Stored> ordered = first_elements_first<Stored>(x[i], lanes);
        std::memcpy(elements, &ordered, sizeof elements);
        for (int j = 0; j < m; ++j) {
          std::memcpy(to + (e + i * m + j) * kTransposedRows + r, elements + j * n,
                      n * sizeof(Stored));
        }
      }
    }
  }
  return whole;
}

}  // namespace
}  // namespace mqa::kernels
