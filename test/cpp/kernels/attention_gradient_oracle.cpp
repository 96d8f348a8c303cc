#include "attention_gradient_oracle.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

namespace mqa::kernels {
namespace {

constexpr double kSmallestFloat16 = 0x1p-24;  // subnormals are this far apart

}  // namespace

OutGrads random_grads(const Problem& problem, unsigned seed) {
  const Shape& s = problem.shape;
  const int64_t rows = s.B * s.H_q() * s.T;
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  OutGrads grads{{problem.format.query, rows * s.D_v}, {problem.accumulator(), rows}};
  for (int64_t i = 0; i < rows * s.D_v; ++i) grads.out.set(i, normal(random));
  for (int64_t i = 0; i < rows; ++i) grads.lse.set(i, normal(random));
  return grads;
}

// Adds left * right, where left is rounded, independently of all other roundings.
void GradientFormula::add(double left, double left_error, double right, Sum& sum) const {
  const bool subnormal = problem_.format.query == DType::kFloat16 && rounding_.relative > 0;
  const double rounding =
      std::max(rounding_.relative * std::abs(left), subnormal ? kSmallestFloat16 / 2 : 0);
  sum.value += left * right;
  sum.magnitude += std::abs(left * right);
  sum.error += left_error * std::abs(right);
  sum.squares += std::pow(rounding * right, 2);
}

GradientFormula::GradientFormula(const Problem& problem, const OutGrads& grads,
                                 WeightRounding rounding)
    : problem_(problem),
      grads_(grads),
      rounding_(rounding),
      key_(dequantised(problem, problem.key, problem.key_scales, problem.shape.D)),
      value_(dequantised(problem, problem.value, problem.value_scales, problem.shape.D_v)) {
  const Shape& s = problem.shape;
  const int64_t rows = s.B * s.H_q() * s.T, slots = s.B * s.H_kv * s.S;
  query_grad_.resize(rows * s.D);
  key_grad_.resize(slots * s.D);
  value_grad_.resize(slots * s.D_v);
  mask_grad_.resize(problem.mask.size());
  row_sums_.resize(rows);
  for (int64_t b = 0; b < s.B; ++b) {
    for (int64_t h = 0; h < s.H_q(); ++h) {
      for (int64_t t = 0; t < s.T; ++t) differentiate(b, h, t);
    }
  }
}

// p = exp(score - lse), dp = grad_out . value, z = sum_j p dp - grad_lse, d = p (dp - z).
//
// Errors of p: those of the exponential and of the score, as in attention_oracle.cpp, and of lse.
// Those of z: the results' own roundings.
void GradientFormula::differentiate(int64_t b, int64_t h, int64_t t) {
  const Shape& s = problem_.shape;
  const Options& o = problem_.options;
  const int64_t r = problem_.row(b, h, t);
  const double u = unit_roundoff(problem_.accumulator());
  struct Key : RowScores::Key {
    double p = 0, dp = 0, dp_noise = 0;
  };
  const auto [seen, largest_score, noise] = scores_of_row(problem_, key_, b, h, t);
  std::vector<Key> keys;
  double largest = o.has_sinks ? problem_.sinks[h] : -INFINITY;
  for (const RowScores::Key& scored : seen) {
    Key key{scored};
    largest = std::max(largest, key.score);
    for (int64_t d = 0; d < s.D_v; ++d) {
      const double product = grads_.out[r * s.D_v + d] * value_[key.slot * s.D_v + d];
      key.dp += product;
      key.dp_noise += std::abs(product);
    }
    keys.push_back(key);
  }
  if (keys.empty()) {
    row_sums_[r].value = -grads_.lse[r];
    return;
  }
  double sum = o.has_sinks ? std::exp(problem_.sinks[h] - largest) : 0, weights_squared = 0;
  for (Key& key : keys) sum += key.p = std::exp(key.score - largest);
  double z = -grads_.lse[r], z_error = u * std::abs(z);
  for (Key& key : keys) {
    key.p /= sum;
    weights_squared += key.p * key.p;
    z += key.p * key.dp;
  }
  const double chain = noise * std::sqrt(static_cast<double>(s.D));
  const double lse = std::abs(largest + std::log(sum));
  double p_error = u * (32 + 4 * largest_score + 2 * chain + 4 * lse);
  if (rounding_.relative > 0) p_error += 0x1p-18;
  if (problem_.is_quantised()) {
    p_error += 6 * rounding_.relative * noise * (1 + std::sqrt(weights_squared));
  }
  for (int64_t d = 0; d < s.D_v; ++d) {
    double out = 0, magnitude = 0, squares = 0;
    for (const Key& key : keys) {
      const double x = key.p * value_[key.slot * s.D_v + d];
      out += x, magnitude += std::abs(x), squares += x * x;
    }
    const double own = unit_roundoff(problem_.format.query) * std::abs(out);
    const double rounded = (problem_.is_quantised() ? 12 : 6) * rounding_.relative *
                           (std::sqrt(squares) + noise * magnitude * problem_.is_quantised());
    z_error += std::abs(grads_.out[r * s.D_v + d]) *
               (own + rounded + (p_error + 8 * u) * magnitude + kSmallestFloat16);
  }
  row_sums_[r] = {z, z_error, 0, std::abs(z)};
  for (const Key& key : keys) {
    const double d = key.p * (key.dp - z);
    const double values = problem_.is_quantised() ? 6 * rounding_.relative : 0;
    const double d_error =
        key.p * ((16 * u + values) * key.dp_noise + z_error) + (p_error + 4 * u) * std::abs(d);
    if (!mask_grad_.empty()) add(d, d_error, 1, mask_grad_[key.mask]);
    const double slope_error = o.softcap > 0 ? 16 * u * (1 + largest_score / o.softcap) : 0;
    const double dot = o.scale * d * key.slope;
    const double dot_error = std::abs(o.scale) * (d_error * key.slope + std::abs(d) * slope_error);
    for (int64_t i = 0; i < s.D; ++i) {
      add(dot, dot_error + values * std::abs(dot), key_[key.slot * s.D + i],
          query_grad_[r * s.D + i]);
      add(dot, dot_error, problem_.query[r * s.D + i], key_grad_[key.slot * s.D + i]);
    }
    for (int64_t i = 0; i < s.D_v; ++i) {
      add(key.p, key.p * p_error, grads_.out[r * s.D_v + i], value_grad_[key.slot * s.D_v + i]);
    }
  }
}

void GradientFormula::expect_close(const char* name, const std::vector<Sum>& sums,
                                   const Numbers& result, int64_t rows, int64_t slots,
                                   int64_t result_slots, int64_t width) const {
  const double u = unit_roundoff(problem_.accumulator()), own = unit_roundoff(result.dtype());
  const double subnormal = result.dtype() == DType::kFloat16 ? kSmallestFloat16 : 0;
  ASSERT_EQ(result.size(), rows * result_slots * width) << name;
  for (int64_t r = 0; r < rows * slots; ++r) {
    for (int64_t d = 0; d < width; ++d) {
      const Sum& sum = sums[r * width + d];
      const double tolerance = own * std::abs(sum.value) + subnormal + sum.error +
                               6 * std::sqrt(sum.squares) + 64 * u * sum.magnitude;
      ASSERT_NEAR(result[(r / slots * result_slots + r % slots) * width + d], sum.value,
                  tolerance + 1e-300)
          << name << ", row " << r << ", column " << d;
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = slots * width; i < result_slots * width; ++i) {
      ASSERT_EQ(result[r * result_slots * width + i], 0) << name << " of an unused slot";
    }
  }
}

void GradientFormula::expect_close(const Gradients& result) const {
  const Shape& s = problem_.shape;
  const int64_t rows = s.B * s.H_q() * s.T;
  expect_close("row_sums", row_sums_, result.row_sums, rows, 1, 1, 1);
  expect_close("query", query_grad_, result.query, rows, 1, 1, s.D);
  if (result.key.size()) {
    expect_close("key", key_grad_, result.key, s.B * s.H_kv, s.S, result.slots, s.D);
    expect_close("value", value_grad_, result.value, s.B * s.H_kv, s.S, result.slots, s.D_v);
  }
  if (result.mask.size()) {
    expect_close("mask", mask_grad_, result.mask, problem_.mask.size() / s.S, s.S, result.slots, 1);
  }
}

}  // namespace mqa::kernels
