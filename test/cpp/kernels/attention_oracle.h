// Attention by its formula in float64, and how far from it a result may be.
#pragma once

#include <vector>

#include "attention_call.h"
#include "attention_problem.h"

namespace mqa::kernels {

// `weights_are_rounded`: the kernel multiplies values by weights that it has rounded to bfloat16,
// like PyTorch's flash kernel, and the keys and values of a quantised cache, too.
class Formula {
 public:
  explicit Formula(const Problem& problem);

  // That no result is further away than roundings may bring it.
  void expect_close(const Result& result, bool weights_are_rounded) const;
  // That the root mean square error is what roundings to nearest give, for 16-bit queries: to see
  // bits that are lost needlessly.
  void expect_rounded_to_nearest(const Result& result, bool weights_are_rounded) const;

 private:
  struct Row {
    double lse;
    double largest_score;   // |s_j| of the keys that it sees
    double score_noise;     // max |scale| sqrt(sum_d (q_d k_jd)^2) of the keys that it sees
    double square_weights;  // sqrt(sum_j p_j^2)
  };
  struct Element {
    double out;
    double magnitude;  // sum_j p_j |v_j|
    double noise;      // sqrt(sum_j (p_j v_j)^2)
  };

  void attend(int64_t b, int64_t h, int64_t t);
  double arithmetic_error(const Row& row, bool weights_are_rounded) const;
  double rounded(const Row& row, const Element& element) const;
  double tolerance(const Row& row, const Element& element, bool weights_are_rounded) const;

  const Problem& problem_;
  std::vector<double> query_, key_, value_;  // dequantised
  std::vector<Row> rows_;
  std::vector<Element> elements_;
};

}  // namespace mqa::kernels
