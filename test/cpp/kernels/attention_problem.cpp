#include "attention_problem.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <ostream>
#include <random>

#include "dtypes.h"
#include "kernels/formats.h"

namespace mqa::kernels {
namespace {

// Normally distributed numbers, drawn from a sample, which is quick.
class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}
  double normal() {
    static const std::vector<double> sample = [] {
      std::mt19937 engine;
      std::normal_distribution<double> normal;
      std::vector<double> numbers(1 << 14);
      for (double& x : numbers) x = normal(engine);
      return numbers;
    }();
    return sample[below(1 << 14)];
  }
  int64_t below(int64_t end) { return static_cast<int64_t>(engine_() >> 33) % end; }

 private:
  // Knuth's constants; the upper bits are random.
  std::linear_congruential_engine<uint64_t, 6364136223846793005, 1442695040888963407, 0> engine_;
};

Numbers normals(DType dtype, int64_t count, double magnitude, Random& random) {
  Numbers x(dtype, count);
  for (int64_t i = 0; i < count; ++i) x.set(i, magnitude * random.normal());
  return x;
}

// Codes of normally distributed values times what the scales will divide by.
double code_magnitude(DType dtype) {
  return dtype == DType::kInt8 ? 40 : dtype == DType::kFloat8E4M3 ? 60 : 1;
}

Numbers random_scales(int64_t count, double code_magnitude, Random& random) {
  Numbers scales(DType::kFloat32, count);
  for (int64_t i = 0; i < count; ++i) {
    scales.set(i, (0.5 + 0.01 * static_cast<double>(random.below(100))) / code_magnitude);
  }
  return scales;
}

}  // namespace

Numbers::Numbers(DType dtype, int64_t count, bool is_aligned)
    : dtype_(dtype),
      start_(is_aligned ? 0 : size_of(dtype)),
      bytes_(static_cast<size_t>(start_ + count * size_of(dtype))) {}

double Numbers::operator[](int64_t i) const {
  if (dtype_ == DType::kBool) return data()[i];
  double x = 0;
  load_row(dtype_, data(), i, 1, 1.f, &x);
  return x;
}

void Numbers::set(int64_t i, double x) {
  if (dtype_ == DType::kBool) {
    data()[i] = x != 0;
  } else {
    store_row(dtype_, data(), i, 1, 1., &x);
  }
}

void Numbers::fill(int64_t i, int64_t count, double x) {
  if (count == 0) return;
  set(i, x);
  for (int64_t done = 1; done < count; done *= 2) {
    copy(i + done, *this, i, std::min(done, count - done));
  }
}

void Numbers::copy(int64_t i, const Numbers& from, int64_t j, int64_t count) {
  const int64_t size = size_of(dtype_);
  std::memcpy(data() + i * size, from.data() + j * size, static_cast<size_t>(count * size));
}

double garbage(DType dtype) {
  if (dtype == DType::kBool) return 1;
  return dtype == DType::kInt8 ? 127 : std::numeric_limits<double>::quiet_NaN();
}

std::ostream& operator<<(std::ostream& out, const Case& c) {
  const Shape& s = c.shape;
  const Options& o = c.options;
  out << name_of(c.format.query) << " query, " << name_of(c.format.cache) << " cache, B" << s.B
      << " H_kv" << s.H_kv << " G" << s.G << " T" << s.T << " S" << s.S << " D" << s.D << " D_v"
      << s.D_v << (s.value_is_key ? " value_is_key" : "") << (o.is_causal ? " causal" : "");
  if (o.window_left >= 0) out << " window_left " << o.window_left;
  if (o.window_right >= 0) out << " window_right " << o.window_right;
  out << " scale " << o.scale;
  if (o.softcap > 0) out << " softcap " << o.softcap;
  if (o.has_alibi) out << " alibi";
  if (o.has_sinks) out << " sinks";
  if (o.mask == MaskKind::kBool) out << " bool mask";
  if (o.mask == MaskKind::kFloat32) out << " float32 mask";
  if (o.mask == MaskKind::kAsQuery) out << " mask as query";
  if (o.head_scales && is_quantised(c.format.cache)) out << " head_scales";
  return out << " magnitude " << o.query_magnitude;
}

Problem::Problem(const Case& c, unsigned seed) : Case(c) {
  const Shape& s = shape;
  const DType cache = format.cache;
  Random random(seed);
  query = normals(format.query, s.B * s.H_q() * s.T * s.D, options.query_magnitude, random);
  key = normals(cache, s.B * s.H_kv * s.S * s.D, code_magnitude(cache), random);
  value = normals(cache, s.B * s.H_kv * s.S * s.D_v, code_magnitude(cache), random);
  const int64_t rows = s.B * s.H_kv * s.S;
  if (kernels::is_quantised(cache)) {
    const int64_t scales = options.head_scales ? s.H_kv : rows;
    key_scales = random_scales(scales, code_magnitude(cache), random);
    value_scales = random_scales(scales, code_magnitude(cache), random);
  }
  if (s.value_is_key) {
    for (int64_t i = 0; i < rows; ++i) value.copy(i * s.D_v, key, i * s.D, s.D_v);
    value_scales = key_scales;
  }
  seq_lens.assign(s.B, s.S);
  for (int64_t b = 1; b < s.B; ++b) seq_lens[b] = random.below(s.S + 1);

  if (options.has_alibi) {
    alibi_slopes = Numbers(accumulator(), s.B * s.H_q());
    for (int64_t i = 0; i < alibi_slopes.size(); ++i) {
      alibi_slopes.set(i, std::exp2(-1 - random.below(8)));
    }
  }
  if (options.has_sinks) sinks = normals(accumulator(), s.H_q(), 2, random);
  mask_B = random.below(2) ? s.B : 1;
  mask_H = random.below(2) ? s.H_q() : 1;
  mask_T = random.below(2) ? s.T : 1;
  if (options.mask != MaskKind::kNone && s.S > 0) {
    const DType dtype = options.mask == MaskKind::kBool      ? DType::kBool
                        : options.mask == MaskKind::kFloat32 ? DType::kFloat32
                                                             : format.query;
    mask = Numbers(dtype, mask_B * mask_H * mask_T * s.S);
    for (int64_t i = 0; i < mask.size(); ++i) {
      const bool hidden = random.below(3) == 0;
      mask.set(i, dtype == DType::kBool ? !hidden : hidden ? -INFINITY : random.normal());
    }
    const int64_t used = mask_B > 1 ? 0 : *std::max_element(seq_lens.begin(), seq_lens.end());
    for (int64_t i = 0; i < mask.size(); ++i) {
      const int64_t b = i / (mask_H * mask_T * s.S), j = i % s.S;
      if (j >= std::max(used, seq_lens[b])) mask.set(i, garbage(dtype));
    }
  }

  for (int64_t b = 0; b < s.B; ++b) {
    for (int64_t j = seq_lens[b]; j < s.S; ++j) {
      for (int64_t h = 0; h < s.H_kv; ++h) {
        key.fill(slot(b, h, j) * s.D, s.D, garbage(cache));
        value.fill(slot(b, h, j) * s.D_v, s.D_v, garbage(cache));
        if (is_quantised() && !options.head_scales) {
          key_scales.set(slot(b, h, j), garbage(DType::kFloat32));
          value_scales.set(slot(b, h, j), garbage(DType::kFloat32));
        }
      }
    }
  }
}

DType Problem::accumulator() const {
  return format.query == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

int64_t Problem::row(int64_t b, int64_t h, int64_t t) const {
  return (b * shape.H_q() + h) * shape.T + t;
}

int64_t Problem::slot(int64_t b, int64_t kv_head, int64_t j) const {
  return (b * shape.H_kv + kv_head) * shape.S + j;
}

int64_t Problem::scale_index(int64_t b, int64_t kv_head, int64_t j) const {
  return options.head_scales ? kv_head : slot(b, kv_head, j);
}

int64_t Problem::mask_index(int64_t b, int64_t h, int64_t t, int64_t j) const {
  return ((b % mask_B * mask_H + h % mask_H) * mask_T + t % mask_T) * shape.S + j;
}

bool Problem::in_range(int64_t b, int64_t t, int64_t j) const {
  const int64_t diagonal = seq_lens[b] - shape.T + t;
  return j < seq_lens[b] && (!options.is_causal || j <= diagonal) &&
         (options.window_left < 0 || j >= diagonal - options.window_left) &&
         (options.window_right < 0 || j <= diagonal + options.window_right);
}

bool Problem::sees(int64_t b, int64_t h, int64_t t, int64_t j) const {
  if (!in_range(b, t, j)) return false;
  if (options.mask == MaskKind::kNone) return true;
  const double at = mask[mask_index(b, h, t, j)];
  return options.mask == MaskKind::kBool ? at != 0 : at != -INFINITY;
}

Problem::Part Problem::whole() const {
  Part part{{}, 0, shape.H_q(), 0, shape.T};
  for (int64_t b = 0; b < shape.B; ++b) part.batch.push_back(b);
  return part;
}

Problem Problem::select(const Part& part) const {
  const auto [batch, head, heads, begin, end] = part;
  const int64_t kv_head = head / shape.G, kv_heads = (head + heads - 1) / shape.G - kv_head + 1;
  Problem to;
  static_cast<Case&>(to) = *this;
  to.shape.B = static_cast<int64_t>(batch.size());
  to.shape.H_kv = kv_heads;
  to.shape.G = heads / kv_heads;
  to.shape.T = end - begin;
  to.mask_B = mask_B > 1 ? to.shape.B : 1;
  to.mask_H = mask_H > 1 ? heads : 1;
  to.mask_T = mask_T > 1 ? to.shape.T : 1;

  const Shape& s = to.shape;
  to.query = Numbers(query.dtype(), s.B * heads * s.T * s.D);
  to.key = Numbers(key.dtype(), s.B * kv_heads * s.S * s.D);
  to.value = Numbers(value.dtype(), s.B * kv_heads * s.S * s.D_v);
  to.mask = Numbers(mask.dtype(), mask.size() ? to.mask_B * to.mask_H * to.mask_T * s.S : 0);
  if (is_quantised()) {
    const int64_t scales = options.head_scales ? kv_heads : s.B * kv_heads * s.S;
    to.key_scales = Numbers(DType::kFloat32, scales);
    to.value_scales = Numbers(DType::kFloat32, scales);
  }
  if (options.has_alibi) to.alibi_slopes = Numbers(accumulator(), s.B * heads);
  if (options.has_sinks) {
    to.sinks = Numbers(accumulator(), heads);
    to.sinks.copy(0, sinks, head, heads);
  }

  for (int64_t b = 0; b < s.B; ++b) {
    const int64_t from_b = batch[b];
    to.seq_lens.push_back(seq_lens[from_b] - (shape.T - end));
    for (int64_t h = 0; h < heads; ++h) {
      to.query.copy(to.row(b, h, 0) * s.D, query, row(from_b, head + h, begin) * s.D, s.T * s.D);
      if (options.has_alibi) {
        to.alibi_slopes.copy(b * heads + h, alibi_slopes, from_b * shape.H_q() + head + h, 1);
      }
      for (int64_t t = 0; t < s.T && mask.size(); ++t) {
        to.mask.copy(to.mask_index(b, h, t, 0), mask, mask_index(from_b, head + h, begin + t, 0),
                     s.S);
      }
    }
    for (int64_t h = 0; h < kv_heads; ++h) {
      const int64_t at = to.slot(b, h, 0), from = slot(from_b, kv_head + h, 0);
      to.key.copy(at * s.D, key, from * s.D, s.S * s.D);
      to.value.copy(at * s.D_v, value, from * s.D_v, s.S * s.D_v);
      if (!is_quantised()) continue;
      const int64_t scales = options.head_scales ? 1 : s.S;
      to.key_scales.copy(to.scale_index(b, h, 0), key_scales, scale_index(from_b, kv_head + h, 0),
                         scales);
      to.value_scales.copy(to.scale_index(b, h, 0), value_scales,
                           scale_index(from_b, kv_head + h, 0), scales);
    }
  }
  return to;
}

}  // namespace mqa::kernels
