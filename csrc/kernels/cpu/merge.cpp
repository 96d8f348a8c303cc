#include "merge.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../formats.h"

namespace mqa::kernels::cpu {
namespace {

template <class Acc>
void merge_rows(const MergeParams& p, int64_t begin, int64_t end) {
  constexpr Acc kMinusInfinity = -std::numeric_limits<Acc>::infinity();
  std::vector<Acc> part(p.width), total(p.width);
  for (int64_t row = begin; row < end; ++row) {
    const auto lse = [&](int64_t i) { return static_cast<const Acc*>(p.lses[i])[row]; };
    Acc max = kMinusInfinity, sum = 0;
    for (int64_t i = 0; i < p.parts; ++i) max = std::max(max, lse(i));
    std::fill(total.begin(), total.end(), Acc{0});
    for (int64_t i = 0; i < p.parts; ++i) {
      if (lse(i) == kMinusInfinity) continue;
      const Acc weight = std::exp(lse(i) - max);
      load_row(p.dtype, p.outs[i], row * p.width, p.width, 1.f, part.data());
      for (int64_t d = 0; d < p.width; ++d) total[d] += weight * part[d];
      sum += weight;
    }
    store_row(p.dtype, p.out, row * p.width, p.width, sum == 0 ? Acc{1} : 1 / sum, total.data());
    static_cast<Acc*>(p.lse)[row] = max + std::log(sum);
  }
}

}  // namespace

void merge(const MergeParams& params, const Threads& threads) {
  threads.parallel_for(params.rows, [&](int64_t begin, int64_t end) {
    if (params.dtype == DType::kFloat64) return merge_rows<double>(params, begin, end);
    return merge_rows<float>(params, begin, end);
  });
}

}  // namespace mqa::kernels::cpu
