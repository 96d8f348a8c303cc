// Results over some of a row's keys, and how two become one. Maxima are those of scores in base 2.
#pragma once

#include "device.cuh"

namespace mqa::kernels::cuda {

inline constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// -inf - -inf would be NaN.
DEVICE float base_of(float max) { return max == -INFINITY ? 0.f : max; }

struct alignas(8) Softmax {
  float max = -INFINITY, sum = 0;
};

// total and part become one: out = keep * total's out + add * part's. A part that saw nothing
// leaves the total's bits as they are. Every kernel folds by this function, so that it rounds
// alike.
struct Fold {
  float keep, add;

  DEVICE Fold(Softmax& total, const Softmax& part) {
    const float max = fmaxf(total.max, part.max), base = base_of(max);
    keep = ex2(total.max - base);
    add = ex2(part.max - base);
    total.sum = fmaf(part.sum, add, total.sum * keep);
    total.max = max;
  }

  DEVICE float operator()(float total, float part) const { return fmaf(part, add, total * keep); }
};

// A row's sum and maximum with its sink, and what its weighted values are to be multiplied by.
struct Finish {
  float factor, lse;

  DEVICE Finish(Softmax row, float sink) {
    factor = 1;
    if (sink > -INFINITY) {
      Softmax with{sink * kLog2E, 1};
      const Fold fold(with, row);
      factor = fold.add;
      row = with;
    }
    lse = (row.max + log2f(row.sum)) * kLn2;
    if (row.sum != 0) factor /= row.sum;  // else nothing is seen and the values are 0
  }
};

}  // namespace mqa::kernels::cuda
