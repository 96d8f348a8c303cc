// An attention call as random tensors in the order of their shapes, before they are laid out in
// memory (attention_call.h). Letters as in kernels/params.h.
#pragma once

#include <iosfwd>
#include <vector>

#include "kernels/params.h"

namespace mqa::kernels {

// A dense tensor of any dtype that ends where its allocation ends. Its elements lie at addresses
// that promise no more alignment than the dtype needs, or with is_aligned start at a multiple
// of 16.
class Numbers {
 public:
  Numbers(DType dtype, int64_t count, bool is_aligned = false);
  Numbers() : Numbers(DType::kFloat32, 0) {}

  DType dtype() const { return dtype_; }
  int64_t size() const { return (static_cast<int64_t>(bytes_.size()) - start_) / size_of(dtype_); }
  double operator[](int64_t i) const;
  void set(int64_t i, double x);
  void fill(int64_t i, int64_t count, double x);
  void copy(int64_t i, const Numbers& from, int64_t j, int64_t count);  // of the same dtype
  char* data() { return bytes_.data() + start_; }
  const char* data() const { return bytes_.data() + start_; }

 private:
  DType dtype_;
  int64_t start_;
  std::vector<char> bytes_;
};

// NaN, or true, or the largest code: what no result may depend on where it is not visible.
double garbage(DType dtype);

struct Format {
  DType query, cache;
};

enum class MaskKind { kNone, kBool, kFloat32, kAsQuery };

struct Shape {
  int64_t B = 1, H_kv = 1, G = 1, T = 1, S = 1, D = 64, D_v = 64;
  bool value_is_key = false;  // the first D_v columns of key

  int64_t H_q() const { return G * H_kv; }
};

struct Options {
  bool is_causal = false;
  int64_t window_left = -1, window_right = -1;
  double scale = 0.125, softcap = 0;
  bool has_alibi = false, has_sinks = false;
  MaskKind mask = MaskKind::kNone;
  bool head_scales = false;    // of a quantised cache: one per head instead of one per token
  double query_magnitude = 1;  // standard deviation of the query's elements
};

struct Case {
  Format format{DType::kFloat32, DType::kFloat32};
  Shape shape;
  Options options;
};
std::ostream& operator<<(std::ostream& out, const Case& c);

struct Problem : Case {
  Numbers query;                     // [B, H_q, T, D]
  Numbers key, value;                // [B, H_kv, S, D], [B, H_kv, S, D_v]
  Numbers key_scales, value_scales;  // [B, H_kv, S], [H_kv], or empty
  std::vector<int64_t> seq_lens;     // [B]; the first one is S
  Numbers alibi_slopes, sinks;       // [B, H_q], [H_q], or empty
  Numbers mask;                      // the broadcast of it is [B, H_q, T, S]
  int64_t mask_B, mask_H, mask_T;    // its sizes: 1 or as above

  // Slots beyond seq_lens hold garbage.
  Problem(const Case& c, unsigned seed);

  bool is_quantised() const { return key_scales.size() > 0; }
  DType accumulator() const;
  int64_t row(int64_t b, int64_t h, int64_t t) const;         // of out and lse
  int64_t slot(int64_t b, int64_t kv_head, int64_t j) const;  // of the caches
  int64_t scale_index(int64_t b, int64_t kv_head, int64_t j) const;
  int64_t mask_index(int64_t b, int64_t h, int64_t t, int64_t j) const;
  // By options, apart from mask.
  bool in_range(int64_t b, int64_t t, int64_t j) const;
  // Whether the row sees the key.
  bool sees(int64_t b, int64_t h, int64_t t, int64_t j) const;

  // These sequences, in this order, `heads` query heads from `head` on (all that share a KV head,
  // or one), and the tokens [begin, end) as they would be computed before the later ones came. The
  // last needs a causal call.
  struct Part {
    std::vector<int64_t> batch;
    int64_t head, heads, begin, end;
  };
  Part whole() const;
  Problem select(const Part& part) const;

 private:
  Problem() = default;
};

}  // namespace mqa::kernels
