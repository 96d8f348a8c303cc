#include "attention_call.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <ostream>
#include <random>
#include <thread>

namespace mqa::kernels {
namespace {

constexpr int64_t kLayers = 3, kLayer = 1;
constexpr int64_t kGap = 3;
constexpr int64_t kSparePages = 2;

// Key or value in memory, with their scales.
struct Side {
  Numbers data, scales;
  Cache cache;
};

class Placement {
 public:
  Placement(const Problem& problem, const Layout& layout)
      : problem_(problem),
        layout_(layout),
        slots_(layout.page_size ? layout.page_size : row_slots()),
        row_pages_(layout.page_size ? (problem.shape.S + slots_ - 1) / slots_ : 1),
        rows_(layout.page_size ? problem.shape.B * row_pages_ + kSparePages : problem.shape.B),
        pages_(rows_) {
    std::iota(pages_.begin(), pages_.end(), 0);
    if (layout.page_size) std::shuffle(pages_.begin(), pages_.end(), std::mt19937(3));
  }

  int64_t capacity() const { return row_pages_ * slots_; }

  Side place(const Numbers& from, const Numbers& scales, int64_t width, bool is_packed) const {
    const Shape& s = problem_.shape;
    const bool layers = layout_.order == Layout::Order::kLayers;
    const bool heads_first = layout_.order == Layout::Order::kHeadsFirst;
    // Sixteen slots of packed keys are laid out as one of others is.
    const int64_t together = is_packed ? kPackedSlots : 1, places = slots_ / together;
    const int64_t size = together * width;
    const int64_t stride = size + (layout_.order == Layout::Order::kGaps ? kGap : 0);
    const int64_t slot_size = (layers ? kLayers : 1) * s.H_kv * stride;
    Side side;
    Cache& cache = side.cache;
    cache.dtype = from.dtype();
    cache.is_packed = is_packed;
    cache.row_stride = places * slot_size;
    cache.head_stride = heads_first ? places * stride : stride;
    cache.slot_stride = heads_first ? stride : slot_size;
    const int64_t first = layers ? kLayer * s.H_kv * stride : 0;
    // Up to the last element that the cache has.
    side.data = Numbers(from.dtype(),
                        first + cache.row_stride * std::max<int64_t>(rows_ - 1, 0) +
                            cache.head_stride * (s.H_kv - 1) +
                            cache.slot_stride * std::max<int64_t>(places - 1, 0) +
                            (rows_ && places ? size : 0),
                        layout_.is_aligned);
    const bool floats = scales.size() == 0;
    const double unused = floats && layout_.fill != 0 ? layout_.fill : garbage(from.dtype());
    side.data.fill(0, side.data.size(), unused);
    cache.data = side.data.data() + first * size_of(from.dtype());
    place_scales(scales, side);
    for (int64_t b = 0; b < s.B; ++b) {
      for (int64_t h = 0; h < s.H_kv; ++h) {
        for (int64_t j = 0; j < problem_.seq_lens[b]; ++j) {
          const int64_t row = row_of(b, j), slot = j % slots_;
          const int64_t to = first + row * cache.row_stride + h * cache.head_stride +
                             slot / together * cache.slot_stride + slot % together;
          const int64_t run = is_packed ? 1 : width;
          for (int64_t d = 0; d < width; d += run) {
            side.data.copy(to + d * together, from, problem_.slot(b, h, j) * width + d, run);
          }
          if (scales.size() && !problem_.options.head_scales) {
            side.scales.copy((row * s.H_kv + h) * slots_ + slot, scales, problem_.slot(b, h, j), 1);
          }
        }
      }
    }
    return side;
  }

  std::vector<int32_t> table() const {
    std::vector<int32_t> table;
    if (!layout_.page_size) return table;
    for (int64_t b = 0; b < problem_.shape.B; ++b) {
      for (int64_t i = 0; i < row_pages_; ++i) {
        const bool used = i * slots_ < problem_.seq_lens[b];
        table.push_back(used ? static_cast<int32_t>(pages_[b * row_pages_ + i]) : -1);
      }
    }
    return table;
  }

  int64_t row_pages() const { return row_pages_; }
  int64_t rows() const { return rows_; }

 private:
  int64_t row_slots() const {
    const int64_t slots = problem_.shape.S + layout_.spare_slots;
    return layout_.is_packed ? (slots + kPackedSlots - 1) / kPackedSlots * kPackedSlots : slots;
  }
  int64_t row_of(int64_t b, int64_t j) const { return pages_[b * row_pages_ + j / slots_]; }

  void place_scales(const Numbers& scales, Side& side) const {
    if (scales.size() == 0) return;
    const int64_t heads = problem_.shape.H_kv;
    if (problem_.options.head_scales) {
      side.scales = scales;
      side.cache.scales = {nullptr, 0, 1, 0};
    } else {
      side.scales = Numbers(DType::kFloat32, rows_ * heads * slots_);
      side.scales.fill(0, side.scales.size(), garbage(DType::kFloat32));
      side.cache.scales = {nullptr, heads * slots_, slots_, 1};
    }
    side.cache.scales.data = reinterpret_cast<float*>(side.scales.data());
  }

  const Problem& problem_;
  const Layout& layout_;
  int64_t slots_, row_pages_, rows_;  // of the batch or the pool
  std::vector<int64_t> pages_;
};

// A tensor between two zones that nobody may write to.
class Guarded {
 public:
  Guarded(DType dtype, int64_t count) : numbers_(dtype, count + 2 * kZone), count_(count) {
    std::fill_n(numbers_.data(), numbers_.size() * size_of(dtype), kUntouched);
  }

  char* data() { return numbers_.data() + kZone * size_of(numbers_.dtype()); }

  Numbers take() const {
    const int64_t zone = kZone * size_of(numbers_.dtype()), all = numbers_.size();
    const char* end = numbers_.data() + all * size_of(numbers_.dtype());
    const auto untouched = [](char byte) { return byte == kUntouched; };
    EXPECT_TRUE(std::all_of(numbers_.data(), numbers_.data() + zone, untouched));
    EXPECT_TRUE(std::all_of(end - zone, end, untouched));
    Numbers inside(numbers_.dtype(), count_);
    inside.copy(0, numbers_, kZone, count_);
    return inside;
  }

 private:
  static constexpr int64_t kZone = 64;
  static constexpr char kUntouched = 0x5a;
  Numbers numbers_;
  int64_t count_;
};

}  // namespace

std::ostream& operator<<(std::ostream& out, const Layout& layout) {
  const char* orders[] = {"heads first", "slots first", "gaps", "layers"};
  out << orders[static_cast<int>(layout.order)];
  if (layout.is_packed) out << ", packed keys";
  if (layout.page_size) out << " in pages of " << layout.page_size;
  if (!layout.is_aligned) out << " unaligned";
  if (layout.spare_slots) out << " with " << layout.spare_slots << " spare slots";
  return out;
}

std::string Result::bits(int64_t row) const {
  const int64_t rows = lse.size(), width = rows ? out.size() / rows * size_of(out.dtype()) : 0;
  const int64_t lse_width = size_of(lse.dtype());
  return std::string(out.data() + row * width, width) +
         std::string(lse.data() + row * lse_width, lse_width);
}

Threads scrambled(int64_t threads) {
  return {threads, [](int64_t n, const auto& body) {
            for (int64_t end = n; end > 0; end -= 3) body(std::max<int64_t>(end - 3, 0), end);
          }};
}

Threads concurrent() {
  return {2, [](int64_t n, const auto& body) {
            std::thread other([&] {
              if (n > 1) body(0, n / 2);
            });
            body(n / 2, n);
            other.join();
          }};
}

namespace {

// A problem's tensors in memory, and the params that point to them.
class Call {
 public:
  Call(const Problem& problem, const Layout& layout)
      : s_(problem.shape),
        placement_(problem, layout),
        query_(problem.format.query, problem.query.size(), layout.is_aligned),
        alibi_(problem.alibi_slopes),
        sinks_(problem.sinks),
        key_(placement_.place(problem.key, problem.key_scales, s_.D, layout.is_packed)),
        value_(placement_.place(problem.value, problem.value_scales, s_.D_v, false)),
        table_(placement_.table()),
        mask_(mask_of(problem, placement_.capacity())),
        out_(problem.format.query, s_.B * s_.H_q() * s_.T * s_.D_v),
        lse_(problem.accumulator(), s_.B * s_.H_q() * s_.T) {
    const Options& o = problem.options;
    query_.copy(0, problem.query, 0, query_.size());
    if (s_.value_is_key && !layout.is_packed) value_.cache = key_.cache;
    AttentionParams& p = params;
    p.B = s_.B, p.H_q = s_.H_q(), p.H_kv = s_.H_kv;
    p.T = s_.T, p.S = placement_.capacity(), p.D = s_.D, p.D_v = s_.D_v;
    p.query = query_.data();
    p.dtype = problem.format.query;
    p.query_batch_stride = p.H_q * p.T * p.D;
    p.query_head_stride = p.T * p.D;
    p.query_token_stride = p.D;
    p.key = key_.cache, p.value = value_.cache;
    if (layout.page_size) {
      p.block_table = {table_.data(), placement_.row_pages(), 1, layout.page_size,
                       placement_.rows()};
    }
    p.seq_lens = problem.seq_lens.data();
    if (mask_.size()) p.mask = mask_params(problem, mask_);
    p.is_causal = o.is_causal;
    p.window_left = o.window_left, p.window_right = o.window_right;
    p.scale = o.scale, p.softcap = o.softcap;
    if (o.has_alibi) p.alibi_slopes = alibi_.data();
    p.alibi_batch_stride = p.H_q, p.alibi_head_stride = 1;
    if (o.has_sinks) p.sinks = sinks_.data();
    p.out = out_.data(), p.lse = lse_.data();
  }

  // Of a tensor like the problem's mask, with a column for each slot of the cache.
  Mask mask_params(const Problem& problem, Numbers& data) const {
    const int64_t columns = placement_.capacity();
    return {data.data(),
            data.dtype(),
            problem.mask_B > 1 ? problem.mask_H * problem.mask_T * columns : 0,
            problem.mask_H > 1 ? problem.mask_T * columns : 0,
            problem.mask_T > 1 ? columns : 0,
            1};
  }

  Result result() const { return {out_.take(), lse_.take()}; }

  AttentionParams params{};

 private:
  static Numbers mask_of(const Problem& problem, int64_t columns) {
    const int64_t S = problem.shape.S, rows = S ? problem.mask.size() / S : 0;
    Numbers mask(problem.mask.dtype(), rows * columns);
    mask.fill(0, mask.size(), garbage(mask.dtype()));
    for (int64_t i = 0; i < rows; ++i) mask.copy(i * columns, problem.mask, i * S, S);
    return mask;
  }

  const Shape& s_;
  Placement placement_;
  Numbers query_, alibi_, sinks_;
  Side key_, value_;
  std::vector<int32_t> table_;
  Numbers mask_;
  Guarded out_, lse_;
};

}  // namespace

Result attend(const Problem& problem, const Layout& layout, const Threads& threads) {
  Call call(problem, layout);
  run(call.params, threads);
  return call.result();
}

Gradients differentiate(const Problem& problem, const OutGrads& grads, const Layout& layout,
                        const Threads& threads) {
  const Shape& s = problem.shape;
  const DType exact = problem.accumulator();
  Call call(problem, layout);
  run(call.params, threads);

  const int64_t slots = call.params.S;
  Numbers grad_out = grads.out, grad_lse = grads.lse;
  const bool of_cache = !problem.is_quantised();
  const DType of_cache_dtype = layout.page_size ? exact : problem.format.query;
  Guarded row_sums(exact, s.B * s.H_q() * s.T);
  Guarded query(problem.format.query, s.B * s.H_q() * s.T * s.D);
  Guarded key(of_cache_dtype, s.B * s.H_kv * slots * s.D);
  Guarded value(of_cache_dtype, s.B * s.H_kv * slots * s.D_v);
  const bool of_mask = problem.mask.size() > 0 && problem.mask.dtype() != DType::kBool;
  Numbers mask(exact, of_mask ? problem.mask.size() / s.S * slots : 0);

  BackwardParams p{};
  static_cast<AttentionParams&>(p) = call.params;
  p.grad_out = grad_out.data(), p.grad_lse = grad_lse.data();
  p.grad_out_batch_stride = p.H_q * p.T * p.D_v;
  p.grad_out_head_stride = p.T * p.D_v, p.grad_out_token_stride = p.D_v;
  p.row_sums = row_sums.data();
  p.grad_query = query.data();
  if (of_cache) p.grad_key = key.data(), p.grad_value = value.data();
  p.grad_cache_dtype = of_cache_dtype;
  if (of_mask) p.grad_mask = call.mask_params(problem, mask);
  run_backward(p, threads);

  Gradients result{query.take(), {}, {}, mask, row_sums.take(), slots};
  if (of_cache) result.key = key.take(), result.value = value.take();
  return result;
}

}  // namespace mqa::kernels
