// What appends are made of, compiled once per ISA: isa.h says which one is in use.
#pragma once

#include "../params.h"

namespace mqa::kernels::cpu {

// Rows of one head that go to consecutive slots. Strides count elements.
struct RowRun {
  const void* source;
  int64_t source_stride;
  void* cache;           // of packed keys the first group of 16 slots
  int64_t cache_stride;  // theirs between groups
  int64_t first_slot;    // theirs: the first row's, in its group
  int64_t rows, width;
  // Of a quantised cache, one per row or with stride 0 one for all: given, or else written.
  float* scales;
  int64_t scale_stride;
  bool scale_given;
};

using StoreRows = void (*)(const RowRun&);

// Copies, converts or quantises; for the ISA in use.
StoreRows row_store(DType source, DType cache, bool is_packed);

}  // namespace mqa::kernels::cpu
