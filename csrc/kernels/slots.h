// Where the slots of a cache lie, contiguous or paged.
#pragma once

#include <algorithm>

#include "host_device.h"
#include "params.h"

namespace mqa::kernels {
struct SlotPlace {
  int64_t row;  // of the batch, or the page
  int64_t slot;
};

namespace {  // internal linkage: every ISA that includes this compiles its own copy

inline int64_t page_at(const BlockTable& table, int64_t batch, int64_t index) {
  return table.pages[batch * table.row_stride + index * table.page_stride];
}

inline SlotPlace place_of(const BlockTable& table, int64_t batch, int64_t slot) {
  if (!table.pages) return {batch, slot};
  return {page_at(table, batch, slot / table.page_size), slot % table.page_size};
}

// How many of `count` slots from there on lie at one distance.
inline int64_t run_of_slots(const BlockTable& table, SlotPlace place, int64_t count) {
  return table.pages ? std::min(count, table.page_size - place.slot) : count;
}

// Of a slot, of packed keys of its group.
MQA_HOST_DEVICE inline int64_t row_offset(const Cache& cache, SlotPlace place, int64_t head) {
  const int64_t index = cache.is_packed ? place.slot / kPackedSlots : place.slot;
  return place.row * cache.row_stride + head * cache.head_stride + index * cache.slot_stride;
}

// Of a quantised cache.
MQA_HOST_DEVICE inline float& scale_at(const Cache& cache, SlotPlace place, int64_t head) {
  const Scales& scales = cache.scales;
  return scales.data[place.row * scales.row_stride + head * scales.head_stride +
                     place.slot * scales.slot_stride];
}

}  // namespace
}  // namespace mqa::kernels
