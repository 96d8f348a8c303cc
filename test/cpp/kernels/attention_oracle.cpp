#include "attention_oracle.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace mqa::kernels {
namespace {

constexpr double kSmallestFloat16 = 0x1p-24;  // subnormals are this far apart

std::vector<double> numbers(const Numbers& tensor) {
  std::vector<double> x(tensor.size());
  for (int64_t i = 0; i < tensor.size(); ++i) x[i] = tensor[i];
  return x;
}

}  // namespace

std::vector<double> dequantised(const Problem& p, const Numbers& codes, const Numbers& scales,
                                int64_t width) {
  std::vector<double> x = numbers(codes);
  if (!p.is_quantised()) return x;
  const Shape& s = p.shape;
  for (int64_t b = 0; b < s.B; ++b) {
    for (int64_t h = 0; h < s.H_kv; ++h) {
      for (int64_t j = 0; j < s.S; ++j) {
        const double scale = scales[p.scale_index(b, h, j)];
        double* row = x.data() + p.slot(b, h, j) * width;
        for (int64_t d = 0; d < width; ++d) row[d] *= scale;
      }
    }
  }
  return x;
}

RowScores scores_of_row(const Problem& problem, const std::vector<double>& keys, int64_t b,
                        int64_t h, int64_t t) {
  const Shape& s = problem.shape;
  const Options& o = problem.options;
  std::vector<double> query(s.D);
  for (int64_t d = 0; d < s.D; ++d) query[d] = problem.query[problem.row(b, h, t) * s.D + d];
  RowScores scores;
  for (int64_t j = 0; j < problem.seq_lens[b]; ++j) {
    if (!problem.sees(b, h, t, j)) continue;
    RowScores::Key key{problem.slot(b, h / s.G, j), 0, 0, 1};
    double squares = 0;
    for (int64_t d = 0; d < s.D; ++d) {
      const double product = query[d] * keys[key.slot * s.D + d];
      key.score += product;
      squares += product * product;
    }
    key.score *= o.scale;
    scores.largest_score = std::max(scores.largest_score, std::abs(key.score));
    scores.noise = std::max(scores.noise, std::abs(o.scale) * std::sqrt(squares));
    if (o.softcap > 0) {
      const double capped = std::tanh(key.score / o.softcap);
      key.score = o.softcap * capped;
      key.slope = 1 - capped * capped;
    }
    if (o.has_alibi) {
      const double distance = std::abs(problem.seq_lens[b] - s.T + t - j);
      key.score -= problem.alibi_slopes[b * s.H_q() + h] * distance;
    }
    if (o.mask != MaskKind::kNone && o.mask != MaskKind::kBool) {
      key.mask = problem.mask_index(b, h, t, j);
      key.score += problem.mask[key.mask];
    }
    scores.largest_score = std::max(scores.largest_score, std::abs(key.score));
    scores.keys.push_back(key);
  }
  return scores;
}

double unit_roundoff(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return 0x1p-53;
    case DType::kFloat32:
      return 0x1p-24;
    case DType::kBFloat16:
      return 0x1p-8;
    default:
      return 0x1p-11;  // float16
  }
}

Formula::Formula(const Problem& problem)
    : problem_(problem),
      key_(dequantised(problem, problem.key, problem.key_scales, problem.shape.D)),
      value_(dequantised(problem, problem.value, problem.value_scales, problem.shape.D_v)),
      rows_(problem.shape.B * problem.shape.H_q() * problem.shape.T),
      elements_(rows_.size() * problem.shape.D_v) {
  const Shape& s = problem.shape;
  for (int64_t b = 0; b < s.B; ++b) {
    for (int64_t h = 0; h < s.H_q(); ++h) {
      for (int64_t t = 0; t < s.T; ++t) attend(b, h, t);
    }
  }
}

void Formula::attend(int64_t b, int64_t h, int64_t t) {
  const Shape& s = problem_.shape;
  const int64_t r = problem_.row(b, h, t);
  const double sink = problem_.options.has_sinks ? problem_.sinks[h] : -INFINITY;
  const RowScores scores_of = scores_of_row(problem_, key_, b, h, t);
  Row row{-INFINITY, scores_of.largest_score, scores_of.noise, 0};
  double largest = sink;
  std::vector<std::pair<int64_t, double>> scores;  // of slots
  for (const RowScores::Key& key : scores_of.keys) {
    largest = std::max(largest, key.score);
    scores.emplace_back(key.slot, key.score);
  }
  if (largest > -INFINITY) {
    long double sum = std::exp(sink - largest);  // float64 results are compared with it, too
    for (auto& [slot, x] : scores) sum += x = std::exp(x - largest);
    row.lse = largest + static_cast<double>(std::log(sum));
    for (auto& [slot, weight] : scores) weight = static_cast<double>(weight / sum);
  }
  Element* elements = elements_.data() + r * s.D_v;
  for (const auto& [slot, weight] : scores) {
    row.square_weights += weight * weight;
    for (int64_t d = 0; d < s.D_v; ++d) {
      const double x = weight * value_[slot * s.D_v + d];
      elements[d].out += x;
      elements[d].magnitude += std::abs(x);
      elements[d].noise += x * x;
    }
  }
  row.square_weights = std::sqrt(row.square_weights);
  for (int64_t d = 0; d < s.D_v; ++d) elements[d].noise = std::sqrt(elements[d].noise);
  rows_[r] = row;
}

// How far float arithmetic may bring a weight from its value, relative to it: a few roundings of 1
// (the exponential, sums over keys, which err both ways) and of the largest score, and those of the
// sum over D, each of which errs by a rounding of a sum that has come as far as
// sqrt(sum_d (q_d k_d)^2). The exponential of weights that will be rounded may be coarser.
double Formula::arithmetic_error(const Row& row, WeightRounding rounding) const {
  const double chain = row.score_noise * std::sqrt(static_cast<double>(problem_.shape.D));
  return unit_roundoff(problem_.accumulator()) * (32 + 4 * row.largest_score + 2 * chain) +
         (rounding.relative > 0 ? 0x1p-18 : 0);
}

// Relative errors e_j of the weights change out = sum_j p_j v_j by sum_j p_j e_j (v_j - out).
//
// Those of float arithmetic add up to sum_j p_j |v_j| times the largest, at most.
//
// Roundings to bfloat16 are larger, but have a mean of zero and are independent of each other:
// |e_j| <= u makes the sum exceed 6 u sqrt(sum_j (p_j v_j)^2) once in 3e7 times at most
// (Hoeffding), far less often for errors spread over [-u, u]. A missing key of 2000 is still seen.
//
// Last, out itself is rounded.
double Formula::tolerance(const Row& row, const Element& e, WeightRounding rounding) const {
  const double output = unit_roundoff(problem_.format.query) * std::abs(e.out);
  const double subnormal = problem_.format.query == DType::kFloat16 ? kSmallestFloat16 : 0;
  const double arithmetic = arithmetic_error(row, rounding) * (e.magnitude + 0x1p-4);
  return output + subnormal + arithmetic + 6 * rounding.relative * rounded(row, e);
}

// What roundings of weights to bfloat16 multiply. Where the values of a quantised cache are
// rounded, too, that is the same again, and a rounded key changes its score by
// |scale| sqrt(sum_d (q_d k_d)^2) times as much as a weight. Independent errors: squares add up.
double Formula::rounded(const Row& row, const Element& e) const {
  if (!problem_.is_quantised()) return e.noise;
  const double keys = row.score_noise * std::hypot(e.noise, e.out * row.square_weights);
  return std::hypot(e.noise, e.noise, keys);
}

void Formula::expect_rounded_to_nearest(const Result& result, WeightRounding rounding) const {
  if (size_of(problem_.format.query) != 2) return;
  constexpr double kTypical = 0.41;  // root mean square of relative errors, in unit roundoffs
  double errors = 0, expected = 0;
  for (size_t i = 0; i < elements_.size(); ++i) {
    const Row& row = rows_[i / problem_.shape.D_v];
    const Element& e = elements_[i];
    const double output = kTypical * unit_roundoff(problem_.format.query) * e.out;
    const double weights = kTypical * rounding.relative * rounded(row, e);
    const double error = result.out[i] - e.out;
    errors += error * error;
    expected += output * output + weights * weights;
  }
  EXPECT_LE(std::sqrt(errors), 1.25 * std::sqrt(expected));
}

void Formula::expect_close(const Result& result, WeightRounding rounding) const {
  const int64_t D_v = problem_.shape.D_v;
  for (size_t r = 0; r < rows_.size(); ++r) {
    const Row& row = rows_[r];
    const int64_t first = static_cast<int64_t>(r) * D_v;
    if (row.lse == -INFINITY) {
      ASSERT_EQ(result.lse[r], -INFINITY) << "row " << r;
      for (int64_t d = 0; d < D_v; ++d) ASSERT_EQ(result.out[first + d], 0) << "row " << r;
      continue;
    }
    const double of_keys =
        problem_.is_quantised() ? 6 * rounding.relative * row.score_noise * row.square_weights : 0;
    const double output = 2 * unit_roundoff(problem_.accumulator()) * std::abs(row.lse);
    ASSERT_NEAR(result.lse[r], row.lse, of_keys + arithmetic_error(row, rounding) + output)
        << "row " << r;
    for (int64_t d = 0; d < D_v; ++d) {
      const Element& e = elements_[first + d];
      ASSERT_NEAR(result.out[first + d], e.out, tolerance(row, e, rounding))
          << "row " << r << ", column " << d;
    }
  }
}

}  // namespace mqa::kernels
