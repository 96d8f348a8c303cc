#include "append.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "../formats.h"
#include "../slots.h"

namespace mqa::kernels::cpu {
namespace {

using Side = AppendParams::Side;

template <class Acc>
Acc largest_code(DType dtype) {
  return dtype == DType::kInt8 ? 127 : 448;
}

template <class Acc>
Acc max_magnitude(const std::vector<Acc>& row) {
  Acc result = 0;
  for (Acc x : row) {
    if (std::isnan(x)) return x;
    result = std::max(result, std::abs(x));
  }
  return result;
}

template <class Acc>
void append_row(const Side& side, int64_t batch, int64_t head, int64_t token, SlotPlace place,
                std::vector<Acc>& row) {
  const Cache& cache = side.cache;
  const int64_t from = batch * side.source_batch_stride + head * side.source_head_stride +
                       token * side.source_token_stride;
  const int64_t to = row_offset(cache, place, head);
  if (side.source_dtype == cache.dtype) {
    const int64_t bytes = size_of(cache.dtype);
    std::memcpy(static_cast<char*>(cache.data) + to * bytes,
                static_cast<const char*>(side.source) + from * bytes, side.width * bytes);
    return;
  }
  row.resize(side.width);
  load_row(side.source_dtype, side.source, from, side.width, 1.f, row.data());
  Acc divisor = 1;
  if (cache.scales.data) {
    float& scale = scale_at(cache, place, head);
    if (!side.scale_per_head) {
      scale = static_cast<float>(max_magnitude(row) / largest_code<Acc>(cache.dtype));
    }
    divisor = scale == 0 ? 1 : scale;  // a row of zeros keeps scale 0 and codes 0
  }
  store_row(cache.dtype, cache.data, to, side.width, divisor, row.data());
}

template <class Acc>
void append_tokens(const AppendParams& p, int64_t begin, int64_t end) {
  std::vector<Acc> row;
  const BlockTable& table = p.block_table;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t batch = i / p.T, token = i % p.T;
    const int64_t slot = p.positions[batch] + token;
    const SlotPlace place = table.pages ? SlotPlace{page_at(table, batch, slot / table.page_size),
                                                    slot % table.page_size}
                                        : SlotPlace{batch, slot};
    for (int64_t head = 0; head < p.H_kv; ++head) {
      append_row(p.key, batch, head, token, place, row);
      append_row(p.value, batch, head, token, place, row);
    }
  }
}

}  // namespace

void append(const AppendParams& params, const Threads& threads) {
  threads.parallel_for(params.B * params.T, [&](int64_t begin, int64_t end) {
    if (params.key.source_dtype == DType::kFloat64)
      return append_tokens<double>(params, begin, end);
    return append_tokens<float>(params, begin, end);
  });
}

}  // namespace mqa::kernels::cpu
