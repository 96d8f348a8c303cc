// Rows copied, converted or quantised to a cache's dtype, for the instruction set that MQA_ISA
// names.
#include "append_rows.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "../formats.h"
#include "append_packed.h"
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

// Columns [begin, end) of a row.
template <class From, class To>
void append_columns(const Rows<From, To>& rows, int64_t r, int64_t begin, int64_t end,
                    typename To::Storage* to) {
  const typename From::Storage* from = rows.source(r) + begin;
  if constexpr (std::is_same_v<From, To>) {
    std::memcpy(to, from, (end - begin) * sizeof *to);
  } else if constexpr (kIsQuantised<To>) {
    const AccOf<From> scale = rows.scale(r);
    const AccOf<From> divisor = scale == 0 ? 1 : scale;  // a row of zeros has scale 0 and codes 0
    quantise<From, To>(from, divisor, end - begin, to);
  } else {
    convert_row<From, To>(from, end - begin, to);
  }
}

// Of rows [begin, end) of a cache of codes, unless they are given.
template <class From, class To>
void find_scales(const Rows<From, To>& rows, int64_t begin, int64_t end) {
  if constexpr (kIsQuantised<To>) {
    for (int64_t r = begin; r < end && !rows.run.scale_given; ++r) {
      const auto largest = max_magnitude<From>(rows.source(r), rows.run.width);
      rows.scale(r) = static_cast<float>(largest / kLargestCode<To>);
    }
  }
}

template <class From, class To>
void store_rows(const RowRun& run) {
  const Rows<From, To> rows{run};
  for (int64_t first = 0; first < run.rows; first += kGroupRows) {
    const int64_t end = std::min(first + kGroupRows, run.rows);
    find_scales(rows, first, end);
    for (int64_t r = first; r < end; ++r) {
      rows.prefetch(r + kGroupRows);
      append_columns(rows, r, 0, run.width, rows.cache(r));
    }
  }
  clear_upper_lanes();
}

// Rows [begin, end) to consecutive slots of a group of packed keys, by columns that L1 keeps.
template <class From, class To>
void append_slots(const Rows<From, To>& rows, int64_t begin, int64_t end,
                  typename To::Storage* to) {
  const int64_t width = rows.run.width, count = end - begin;
  if constexpr (std::is_same_v<From, To>) {
    store_slots(rows.source(begin), rows.run.source_stride, count, width, to);
  } else {
    constexpr int64_t kColumns = 64;
    typename To::Storage block[kPackedSlots * kColumns];
    for (int64_t column = 0; column < width; column += kColumns) {
      const int64_t columns = std::min(kColumns, width - column);
      for (int64_t r = 0; r < count; ++r) {
        append_columns(rows, begin + r, column, column + columns, block + r * kColumns);
      }
      store_slots(block, kColumns, count, columns, to + column * kPackedSlots);
    }
  }
}

template <class From, class To>
void store_packed_rows(const RowRun& run) {
  const Rows<From, To> rows{run};
  auto* group = static_cast<typename To::Storage*>(run.cache);
  int64_t slot = run.first_slot;
  for (int64_t first = 0, end; first < run.rows; first = end, slot = 0, group += run.cache_stride) {
    end = std::min(first + kPackedSlots - slot, run.rows);
    find_scales(rows, first, end);
    append_slots(rows, first, end, group + slot);
  }
  clear_upper_lanes();
}

}  // namespace

namespace MQA_ISA {

StoreRows row_store(DType source, DType cache, bool is_packed) {
  StoreRows result = nullptr;
  with_format(source, [&](auto from) {
    with_format(cache, [&](auto to) {
      using From = decltype(from);
      using To = decltype(to);
      if constexpr (!kIsQuantised<From>) {  // none appends codes
        result = is_packed ? store_packed_rows<From, To> : store_rows<From, To>;
      }
    });
  });
  return result;
}

}  // namespace MQA_ISA
}  // namespace mqa::kernels::cpu
