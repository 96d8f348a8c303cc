// What a tile of rows adds to the gradients, chunk by chunk of the keys that it sees.
//
// With p = exp(score - lse), dp = grad_out value^T and z = sum_d grad_out out - grad_lse:
//   grad_value = p^T grad_out
//   d_score    = p (dp - z)                    the gradient of an added mask
//   grad_query = scale d_score key             (through softcap's derivative)
//   grad_key   = scale d_score^T query
// Dao et al. 2022 (arXiv 2205.14135), algorithm 4, over folded rows.
//
// The first two products are the scores that the engines of attention compute, with values and
// grad_out in the place of keys and queries the second time. The other three are those of Sums.
#pragma once

#include "attend.h"
#include "backward_tile.h"

namespace mqa::kernels::cpu {
namespace {

// Of query, grad_out or out: the rows of a tile, in To.
struct RowSource {
  const void* data;
  int64_t batch_stride, head_stride, token_stride, width;
};

template <class To>
void gather_rows(const AttentionParams& p, const RowTile& tile, const RowSource& source, To* to,
                 int64_t stride) {
  const Cache as_cache{const_cast<void*>(source.data), p.dtype, 0, 0, 0, {}};
  RowWalk walk(p, tile, 0);
  for (int64_t r = 0; r < tile.rows; ++r, ++walk) {
    const auto [head, token] = *walk;
    const int64_t offset =
        tile.batch * source.batch_stride + head * source.head_stride + token * source.token_stride;
    convert_row(as_cache, offset, source.width, nullptr, to + r * stride, stride);
  }
  std::fill_n(to + tile.rows * stride, (whole_tiles({0, tile.rows}, 32).end - tile.rows) * stride,
              To{});
}

inline RowSource queries(const BackwardParams& p) {
  return {p.query, p.query_batch_stride, p.query_head_stride, p.query_token_stride, p.D};
}
inline RowSource grad_outs(const BackwardParams& p) {
  return {p.grad_out, p.grad_out_batch_stride, p.grad_out_head_stride, p.grad_out_token_stride,
          p.D_v};
}
inline RowSource outs(const BackwardParams& p) {
  return {p.out, p.H_q * p.T * p.D_v, p.T * p.D_v, p.D_v, p.D_v};
}

// The calls whose scores the engines compute: nothing is weighed, so values have no width.
inline AttentionParams scores_call(const BackwardParams& p) {
  AttentionParams call = p;
  call.D_v = 1;
  return call;
}
inline AttentionParams grad_scores_call(const BackwardParams& p) {
  AttentionParams call = p;
  const RowSource grads = grad_outs(p);
  call.query = grads.data, call.key = p.value;
  call.query_batch_stride = grads.batch_stride, call.query_head_stride = grads.head_stride,
  call.query_token_stride = grads.token_stride;
  call.D = p.D_v, call.D_v = 1;
  return call;
}

// Sums provides
//   Engine                             of the scores
//   Sums(params, tile, grads, pieces)  takes its memory from the pieces
//   pack()                             query and grad_out
//   find_keys(work, tiles)             of a chunk
//   add(groups, softmax)               what these groups of rows give; softmax(group, key, lane,
//                                      weights, d_scores) computes a vector of each
//   finish_chunk(), finish()           finish writes grad_query
template <class Sums>
class Differentiate {
 public:
  using Engine = typename Sums::Engine;
  using Acc = typename Engine::Acc;

  static int64_t scratch_size(const BackwardParams& p) {
    return Differentiate(p, {}, {}, nullptr).pieces_.next();  // of pieces that begin at 0
  }

  Differentiate(const BackwardParams& p, const RowTile& tile, const CacheGrads<Acc>& grads,
                void* scratch)
      : p_(p),
        tile_(tile),
        score_call_(scores_call(p)),
        grad_call_(grad_scores_call(p)),
        pieces_(scratch),
        sums_(p, tile_, grads, pieces_) {
    query_ = pieces_.take<char>(Sums::query_size(score_call_));
    grad_out_ = pieces_.take<char>(Sums::query_size(grad_call_));
    score_scratch_ = pieces_.take<char>(Engine::scratch_size(score_call_));
    grad_scratch_ = pieces_.take<char>(Engine::scratch_size(grad_call_));
    base_ = pieces_.take<Acc>(kTileRows);
    row_sums_ = pieces_.take<Acc>(kTileRows);
    row_width_ = padded(p.D_v);
    rows_ = pieces_.take<Acc>(2 * kTileRows * row_width_);
    if (p.softcap > 0) slopes_ = pieces_.take<Acc>(Engine::kGroups * kGroupScores);
  }

  void run() {
    Sums::pack_queries(score_call_, tile_, query_);
    Sums::pack_queries(grad_call_, tile_, grad_out_);
    sums_.pack();
    find_row_sums();
    const KeyRange seen =
        visible_keys(p_, tile_.batch, token_of(p_, tile_, 0), token_of(p_, tile_, tile_.rows - 1));
    for (int64_t key = seen.begin; key < seen.end; key = chunk_ + kChunkKeys) {
      const KeyRange rest{key, seen.end};
      chunk_ = chunk_start(rest);
      run_chunk({tile_, intersect(rest, {chunk_, chunk_ + kChunkKeys})});
    }
    sums_.finish();
  }

 private:
  static constexpr int64_t kGroupScores = kChunkKeys * kGroupRows;

  // z, and what scores in units of ln 2 are set against.
  void find_row_sums() {
    const int64_t width = row_width_;
    Acc *out = rows_, *grad_out = rows_ + kTileRows * width;
    gather_rows(p_, tile_, outs(p_), out, width);
    gather_rows(p_, tile_, grad_outs(p_), grad_out, width);
    std::fill_n(base_, kTileRows, Acc{0});
    std::fill_n(row_sums_, kTileRows, Acc{0});
    RowWalk walk(p_, tile_, 0);
    for (int64_t r = 0; r < tile_.rows; ++r, ++walk) {
      const auto [head, token] = *walk;
      const int64_t row = (tile_.batch * p_.H_q + head) * p_.T + token;
      Vector<Acc> products = {};
      for (int64_t d = r * width; d < (r + 1) * width; d += kLanes<Acc>) {
        products = multiply_add(load(out + d), load(grad_out + d), products);
      }
      Acc z = 0;
      for (int i = 0; i < kLanes<Acc>; ++i) z += products[i];
      if (p_.grad_lse) z -= static_cast<const Acc*>(p_.grad_lse)[row];
      static_cast<Acc*>(p_.row_sums)[row] = row_sums_[r] = z;
      // No key seen: all scores are -inf. An infinite score seen: as with softmax, NaN.
      const Acc lse = static_cast<const Acc*>(p_.lse)[row];
      base_[r] = lse == kMinusInfinity<Acc> ? 0 : (lse - lse) + lse * kLog2E<Acc>;
    }
  }

  void run_chunk(const Work& work) {
    const Work none{};
    Engine scores(score_call_, work, none, query_, score_scratch_);
    Engine grads(grad_call_, work, none, grad_out_, grad_scratch_);
    scores.find_keys();
    grads.find_keys();
    sums_.find_keys(work, scores.key_tiles());
    const int64_t groups = (tile_.rows + kGroupRows - 1) / kGroupRows;
    for (int64_t first = 0; first < groups; first += Engine::kGroups) {
      const int64_t count = std::min<int64_t>(Engine::kGroups, groups - first);
      const RowGroups some = see(p_, tile_, work.keys, first, count, Engine::kSpanKeys);
      if (!some.seen.empty()) score(some, scores, grads);
      sums_.add(some, scores, grads,
                [&](int64_t g, int64_t j, int lane, Vector<Acc>& weight, Vector<Acc>& d_score) {
                  const int64_t at = j * kGroupRows + lane, row = (first + g) * kGroupRows + lane;
                  const Vector<Acc> x = load(scores.scores(g) + at);
                  weight = exp2_nonpositive<Sums::kExactWeights>(
                      multiply_add(x, broadcast(softmax_scale<Acc>(p_)), -load(base_ + row)));
                  d_score = weight * (load(grads.scores(g) + at) - load(row_sums_ + row));
                  // Values that a row does not see may hold NaN.
                  d_score = x == kMinusInfinity<Acc> ? Vector<Acc>{} : d_score;
                  if (p_.grad_mask.data) add_to_mask(row, j, d_score);
                  d_score *= static_cast<Acc>(p_.scale);
                  if (slopes_) d_score *= load(slopes_ + g * kGroupScores + at);
                });
    }
    sums_.finish_chunk();
  }

  void score(const RowGroups& some, Engine& scores, Engine& grads) {
    scores.score(some);
    grads.score(some);
    for (int64_t g = 0; g < some.count; ++g) {
      const int64_t row = (some.first + g) * kGroupRows;
      Acc* x = scores.scores(g);
      if (const Acc* scales = scores.key_scales()) {
        apply_key_scales<RowsInLanes>(kGroupRows, some.span, scales, x);
      }
      if (const Acc* scales = grads.key_scales()) {
        apply_key_scales<RowsInLanes>(kGroupRows, some.span, scales, grads.scores(g));
      }
      if (slopes_) find_slopes(some.span, x, slopes_ + g * kGroupScores);
      if (!scale_only<Acc>(p_)) {
        apply_options<RowsInLanes>(p_, tile_, row, kGroupRows, chunk_, some.span, some.seen, x);
      }
      hide_unseen<RowsInLanes>(p_, tile_, row, kGroupRows, chunk_, some.span, x);
    }
  }

  // d softcap(x) / dx = 1 - tanh(x / softcap)^2
  void find_slopes(KeyRange span, Acc* scores, Acc* slopes) const {
    const Acc factor = static_cast<Acc>(p_.scale / p_.softcap);
    for_each_vector<RowsInLanes>(kGroupRows, span, scores, [&](int64_t, int64_t, Acc* x) {
      const Vector<Acc> t = tanh_of(load(x) * factor);
      store(slopes + (x - scores), 1 - t * t);
    });
  }

  void add_to_mask(int64_t row, int64_t j, Vector<Acc> d_scores) const {
    const Mask& grad = p_.grad_mask;
    RowWalk walk(p_, tile_, row);
    for (int i = 0; i < kLanes<Acc> && row + i < tile_.rows; ++i, ++walk) {
      const auto [head, token] = *walk;
      if (d_scores[i] == 0) continue;  // unseen, slots beyond the last included
      static_cast<Acc*>(const_cast<void*>(
          grad.data))[tile_.batch * grad.batch_stride + head * grad.head_stride +
                      token * grad.query_stride + (chunk_ + j) * grad.key_stride] += d_scores[i];
    }
  }

  const BackwardParams& p_;
  const RowTile tile_;
  const AttentionParams score_call_, grad_call_;
  Pieces pieces_;
  Sums sums_;
  char *query_, *grad_out_, *score_scratch_, *grad_scratch_;
  Acc *base_, *row_sums_, *rows_, *slopes_ = nullptr;
  int64_t row_width_, chunk_ = 0;
};

template <class Sums>
void differentiate(const BackwardParams& p, const RowTile& tile,
                   const CacheGrads<typename Sums::Engine::Acc>& grads, void* scratch) {
  Differentiate<Sums>(p, tile, grads, scratch).run();
  clear_upper_lanes();
}

}  // namespace
}  // namespace mqa::kernels::cpu
