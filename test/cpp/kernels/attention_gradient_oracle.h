// Attention's gradients by their formula in float64, and how far from them a result may be.
#pragma once

#include <vector>

#include "attention_call.h"
#include "attention_oracle.h"
#include "attention_problem.h"

namespace mqa::kernels {

// Normally distributed.
OutGrads random_grads(const Problem& problem, unsigned seed);

class GradientFormula {
 public:
  GradientFormula(const Problem& problem, const OutGrads& grads, WeightRounding rounding);

  // That no element is further away than roundings may bring it; zeros where nothing is seen.
  void expect_close(const Gradients& result) const;

 private:
  // A sum, with bounds of what its terms' errors add up to.
  struct Sum {
    double value = 0;
    double error = 0;    // of terms whose errors may all have one sign
    double squares = 0;  // of terms that are rounded independently
    double magnitude = 0;
  };

  void add(double left, double left_error, double right, Sum& sum) const;

  void differentiate(int64_t b, int64_t h, int64_t t);
  void expect_close(const char* name, const std::vector<Sum>& sums, const Numbers& result,
                    int64_t rows, int64_t slots, int64_t result_slots, int64_t width) const;

  const Problem& problem_;
  const OutGrads& grads_;
  WeightRounding rounding_;
  std::vector<double> key_, value_;
  std::vector<Sum> query_grad_, key_grad_, value_grad_, mask_grad_, row_sums_;
};

}  // namespace mqa::kernels
