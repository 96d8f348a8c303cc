// Rows copied, converted or quantised to a cache's dtype, for the instruction set that MQA_ISA
// names.
#include "append_rows.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "../formats.h"
#include "append_quantise.h"
#include "simd.h"

namespace mqa::kernels::cpu {
namespace {

// The scales of this many rows are computed before the first of the rows is quantised: each is a
// chain of dependent instructions, and the processor overlaps only what is close together. Memory
// is asked for as many rows ahead, since it cannot guess where rows of a strided source go on.
// Twice as many would crowd each other out of L1 where rows are a multiple of 4 KB apart.
constexpr int64_t kGroupRows = 4;

template <class Format>
constexpr bool kIsAcc = std::is_same_v<Format, Float64> || std::is_same_v<Format, Float32>;

template <class Format>
constexpr bool kIsQuantised = std::is_same_v<Format, Int8> || std::is_same_v<Format, Float8E4M3>;

template <class Format>
constexpr float kLargestCode = std::is_same_v<Format, Int8> ? 127 : 448;

template <class From, class To>
struct Rows {
  const RowRun& run;

  const typename From::Storage* source(int64_t r) const {
    return static_cast<const typename From::Storage*>(run.source) + r * run.source_stride;
  }
  typename To::Storage* cache(int64_t r) const {
    return static_cast<typename To::Storage*>(run.cache) + r * run.cache_stride;
  }
  float& scale(int64_t r) const { return run.scales[r * run.scale_stride]; }

  // As a call it would be one without an effect, which compilers drop.
  [[gnu::always_inline]] void prefetch(int64_t r) const {
    if (r >= run.rows) return;
    for (int64_t i = 0; i < run.width; i += 64 / sizeof(*source(r))) {
      __builtin_prefetch(source(r) + i, /*for writing=*/0);
    }
    for (int64_t i = 0; i < run.width; i += 64 / sizeof(*cache(r))) {
      __builtin_prefetch(cache(r) + i, /*for writing=*/1);
    }
  }
};

// From and To differ.
template <class From, class To>
void convert_row(const typename From::Storage* from, int64_t width, typename To::Storage* to) {
  if constexpr (kIsAcc<To>) {
    widen_row(From{}, from, width, to);
  } else if constexpr (kIsAcc<From>) {
    narrow_row(To{}, from, width, to);
  } else {
    constexpr int64_t kBlock = 512;
    float block[kBlock];
    for (int64_t first = 0; first < width; first += kBlock) {
      const int64_t count = std::min(kBlock, width - first);
      widen_row(From{}, from + first, count, block);
      narrow_row(To{}, block, count, to + first);
    }
  }
}

template <class From, class To>
void append_row(const Rows<From, To>& rows, int64_t r) {
  const int64_t width = rows.run.width;
  if constexpr (std::is_same_v<From, To>) {
    std::memcpy(rows.cache(r), rows.source(r), width * sizeof(*rows.cache(r)));
  } else if constexpr (kIsQuantised<To>) {
    const AccOf<From> scale = rows.scale(r);
    const AccOf<From> divisor = scale == 0 ? 1 : scale;  // a row of zeros has scale 0 and codes 0
    quantise<From, To>(rows.source(r), divisor, width, rows.cache(r));
  } else {
    convert_row<From, To>(rows.source(r), width, rows.cache(r));
  }
}

template <class From, class To>
void store_rows(const RowRun& run) {
  const Rows<From, To> rows{run};
  for (int64_t first = 0; first < run.rows; first += kGroupRows) {
    const int64_t end = std::min(first + kGroupRows, run.rows);
    if constexpr (kIsQuantised<To>) {
      for (int64_t r = first; r < end && !run.scale_given; ++r) {
        const auto largest = max_magnitude<From>(rows.source(r), run.width);
        rows.scale(r) = static_cast<float>(largest / kLargestCode<To>);
      }
    }
    for (int64_t r = first; r < end; ++r) {
      rows.prefetch(r + kGroupRows);
      append_row(rows, r);
    }
  }
  clear_upper_lanes();
}

}  // namespace

namespace MQA_ISA {

StoreRows row_store(DType source, DType cache) {
  StoreRows result = nullptr;
  with_format(source, [&](auto from) {
    with_format(cache, [&](auto to) {
      using From = decltype(from);
      using To = decltype(to);
      if constexpr (!kIsQuantised<From>) result = store_rows<From, To>;  // none appends codes
    });
  });
  return result;
}

}  // namespace MQA_ISA
}  // namespace mqa::kernels::cpu
