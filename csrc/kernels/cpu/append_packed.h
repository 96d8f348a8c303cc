// Rows that become columns: of packed keys, where sixteen slots lie side by side.
#pragma once

#include "../params.h"
#include "transpose.h"

namespace mqa::kernels::cpu {
namespace {

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

// to[e][16] = rows[16][e] for as many e < width as whole blocks cover, and how many that are.
template <class Stored>
int64_t transpose_slots(const Stored* rows, int64_t stride, int64_t width, Stored* to) {
  using Word = WordOf<Stored>;
  constexpr int n = kLanes<Word>, m = sizeof(Word) / sizeof(Stored);
  constexpr std::make_integer_sequence<int, n * m> lanes;
  const int64_t whole = width / (n * m) * (n * m);
  for (int64_t slot = 0; slot < kPackedSlots; slot += n) {
    for (int64_t e = 0; e < whole; e += n * m) {
      Vector<Word> x[n];
      for (int i = 0; i < n; ++i) {
        std::memcpy(&x[i], rows + (slot + i) * stride + e, sizeof x[i]);
      }
      transpose(x);
      for (int i = 0; i < n; ++i) {
        Stored elements[n * m];
        const Vector<Stored> ordered = first_elements_first<Stored>(x[i], lanes);
        std::memcpy(elements, &ordered, sizeof elements);
        for (int j = 0; j < m; ++j) {
          std::memcpy(to + (e + i * m + j) * kPackedSlots + slot, elements + j * n,
                      n * sizeof(Stored));
        }
      }
    }
  }
  return whole;
}

// to[e][r] = rows[r][e] for `count` slots, of 16, and e < width.
template <class Stored>
void store_slots(const Stored* rows, int64_t stride, int64_t count, int64_t width, Stored* to) {
  const int64_t done = count == kPackedSlots ? transpose_slots(rows, stride, width, to) : 0;
  for (int64_t e = done; e < width; ++e) {
    for (int64_t r = 0; r < count; ++r) to[e * kPackedSlots + r] = rows[r * stride + e];
  }
}

}  // namespace
}  // namespace mqa::kernels::cpu
