// Attention by its formula in float64, and how far from it a result may be.
#pragma once

#include <vector>

#include "attention_call.h"
#include "attention_problem.h"

namespace mqa::kernels {

// Half the distance from 1 to the next larger number.
double unit_roundoff(DType dtype);

// Of keys or values of `width` elements.
std::vector<double> dequantised(const Problem& problem, const Numbers& codes, const Numbers& scales,
                                int64_t width);

// The keys that a row sees and their scores, which all have been through the options.
struct RowScores {
  struct Key {
    int64_t slot, mask;  // its index in the caches and, where there is one, the mask
    double score;
    double slope;  // of softcap
  };
  std::vector<Key> keys;
  double largest_score = 0;  // |s_j|
  double noise = 0;          // max |scale| sqrt(sum_d (q_d k_jd)^2)
};
RowScores scores_of_row(const Problem& problem, const std::vector<double>& key, int64_t b,
                        int64_t h, int64_t t);

// How a kernel rounds weights before it multiplies values by them; nothing where they stay in the
// accumulator's format.
struct WeightRounding {
  // Unit roundoff of their format, as in PyTorch's flash kernel, and of the keys and values of a
  // quantised cache.
  double relative = 0;
};

class Formula {
 public:
  explicit Formula(const Problem& problem);

  // That no result is further away than roundings may bring it.
  void expect_close(const Result& result, WeightRounding rounding) const;
  // That the root mean square error is what roundings to nearest give, for 16-bit queries: to see
  // bits that are lost needlessly.
  void expect_rounded_to_nearest(const Result& result, WeightRounding rounding) const;

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
  double arithmetic_error(const Row& row, WeightRounding rounding) const;
  double rounded(const Row& row, const Element& element) const;
  double tolerance(const Row& row, const Element& element, WeightRounding rounding) const;

  const Problem& problem_;
  std::vector<double> key_, value_;  // dequantised
  std::vector<Row> rows_;
  std::vector<Element> elements_;
};

}  // namespace mqa::kernels
