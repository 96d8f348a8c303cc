// The driver of attention's gradients.
//
// Every query row adds to the gradients of the keys that it sees. So the tiles of rows of few KV
// heads are dealt out to segments, each with sums of its own, which are added up in order at the
// end. How many there are depends on the heads and rows only, and a segment belongs to one thread:
// neither the number of threads nor the batch changes a bit.
#include "backward.h"

#include <algorithm>

#include "../formats.h"
#include "backward_tile.h"
#include "buffer.h"

namespace mqa::kernels::cpu {
namespace {

// Of all KV heads of a batch row: threads that one sequence can keep busy, and memory.
constexpr int64_t kSegments = 6;

bool wants_cache_grads(const BackwardParams& p) { return p.grad_key || p.grad_value; }

template <class Acc>
class Segments {
 public:
  explicit Segments(const BackwardParams& p)
      : p_(p),
        padding_(backward_ops<Acc>(p).padding),
        rows_(p.H_q / p.H_kv * p.T),
        tiles_(ceil_div(rows_, kTileRows)),
        count_(std::clamp<int64_t>(kSegments / p.H_kv, 1, std::max<int64_t>(tiles_, 1))) {}

  int64_t count() const { return count_; }

  // Of sums that outlive a task, and of those of one that do not: a head in one segment is done
  // when its task ends.
  int64_t workspace() const { return count_ > 1 ? p_.B * p_.H_kv * count_ * task_size() : 0; }
  int64_t scratch() const { return count_ == 1 ? task_size() : 0; }

  // A segment takes every count-th tile: under a causal mask later ones cost more.
  template <class Body>
  void for_each_tile(int64_t batch, int64_t kv_head, int64_t segment, const Body& body) const {
    for (int64_t tile = segment; tile < tiles_; tile += count_) {
      const int64_t first = tile * kTileRows;
      body(RowTile{batch, kv_head, first, std::min(kTileRows, rows_ - first)});
    }
  }

  // Zeros to begin with.
  CacheGrads<Acc> sums(int64_t head, int64_t segment, void* scratch) const {
    const CacheGrads<Acc> sums = at(head, segment, scratch);
    if (sums.key) std::fill_n(sums.key, slots() * sums.key_stride, Acc{0});
    if (sums.value) std::fill_n(sums.value, slots() * sums.value_stride, Acc{0});
    return sums;
  }

  // Of a head in one segment.
  void store(int64_t head, void* scratch) const {
    if (count_ > 1 || in_place()) return;
    for (int64_t slot = 0; slot < p_.S; ++slot) add_up(head, slot, scratch);
  }

  void add_up(const Threads& threads) const {
    if (count_ == 1) return;
    threads.parallel_for(p_.B * p_.H_kv * p_.S, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) add_up(row / p_.S, row % p_.S, nullptr);
    });
  }

 private:
  bool in_place() const {
    return padding_ == 0 && count_ == 1 && size_of(p_.grad_cache_dtype) == sizeof(Acc) &&
           p_.D % padded(1) == 0 && p_.D_v % padded(1) == 0;
  }
  int64_t slots() const { return in_place() ? p_.S : whole(p_.S); }
  int64_t whole(int64_t n) const {
    const int64_t step = std::max(padding_, padded(1));
    return ceil_div(n, step) * step;
  }
  int64_t size() const { return whole(p_.S) * (whole(p_.D) + whole(p_.D_v)); }
  int64_t task_size() const {
    return wants_cache_grads(p_) && !in_place() ? size() * sizeof(Acc) : 0;
  }

  CacheGrads<Acc> at(int64_t head, int64_t segment, void* scratch) const {
    CacheGrads<Acc> grads{static_cast<Acc*>(p_.grad_key), p_.D, static_cast<Acc*>(p_.grad_value),
                          p_.D_v};
    if (in_place()) {
      if (grads.key) grads.key += head * p_.S * p_.D;
      if (grads.value) grads.value += head * p_.S * p_.D_v;
      return grads;
    }
    Acc* const sums = count_ == 1
                          ? static_cast<Acc*>(scratch)
                          : static_cast<Acc*>(p_.workspace) + (head * count_ + segment) * size();
    return {grads.key ? sums : nullptr, whole(p_.D),
            grads.value ? sums + whole(p_.S) * whole(p_.D) : nullptr, whole(p_.D_v)};
  }

  void add_up(int64_t head, int64_t slot, void* scratch) const {
    const auto add = [&](void* grad, int64_t width, const auto& row) {
      if (!grad) return;
      Acc* total = row(0);
      for (int64_t segment = 1; segment < count_; ++segment) {
        const Acc* more = row(segment);
        for (int64_t d = 0; d < width; ++d) total[d] += more[d];
      }
      store_row(p_.grad_cache_dtype, grad, (head * p_.S + slot) * width, width, Acc{1}, total);
    };
    add(p_.grad_key, p_.D, [&](int64_t segment) {
      const CacheGrads<Acc> sums = at(head, segment, scratch);
      return sums.key + slot * sums.key_stride;
    });
    add(p_.grad_value, p_.D_v, [&](int64_t segment) {
      const CacheGrads<Acc> sums = at(head, segment, scratch);
      return sums.value + slot * sums.value_stride;
    });
  }

  const BackwardParams& p_;
  int64_t padding_, rows_, tiles_, count_;
};

// Rows of different tasks must not add to one element of the mask's gradient.
bool shares_mask_across_heads_or_tokens(const BackwardParams& p) {
  return p.grad_mask.data && ((p.grad_mask.head_stride == 0 && p.H_q > 1) ||
                              (p.grad_mask.query_stride == 0 && p.T > 1));
}

template <class Acc>
void run(const BackwardParams& p, const Threads& threads) {
  const BackwardOps<Acc>& ops = backward_ops<Acc>(p);
  const Segments<Acc> segments(p);
  // Batch rows that share a mask come one after the other.
  const int64_t together = p.grad_mask.data && p.grad_mask.batch_stride == 0 ? p.B : 1;
  const int64_t batches = p.B / together;
  const Threads serial;
  const Threads& used = shares_mask_across_heads_or_tokens(p) ? serial : threads;
  used.parallel_for(batches * p.H_kv * segments.count(), [&](int64_t begin, int64_t end) {
    thread_local Buffer buffer;
    void* scratch = buffer.reserve(ops.scratch_size(p));
    Buffer sums_buffer;  // as large as a head's cache: not kept
    void* sums_scratch = sums_buffer.reserve(segments.scratch());
    for (int64_t task = begin; task < end; ++task) {
      const int64_t segment = task % segments.count(), i = task / segments.count();
      for (int64_t j = 0; j < together; ++j) {
        const int64_t batch = i / p.H_kv * together + j, kv_head = i % p.H_kv;
        const int64_t head = batch * p.H_kv + kv_head;
        const CacheGrads<Acc> sums = segments.sums(head, segment, sums_scratch);
        segments.for_each_tile(batch, kv_head, segment, [&](const RowTile& tile) {
          ops.differentiate(p, tile, sums, scratch);
        });
        segments.store(head, sums_scratch);
      }
    }
  });
  segments.add_up(threads);
}

}  // namespace

int64_t backward_workspace(const BackwardParams& p) {
  if (p.H_kv == 0) return 0;
  return p.dtype == DType::kFloat64 ? Segments<double>(p).workspace()
                                    : Segments<float>(p).workspace();
}

void attention_backward(const BackwardParams& p, const Threads& threads) {
  if (p.B == 0) return;
  p.dtype == DType::kFloat64 ? run<double>(p, threads) : run<float>(p, threads);
}

}  // namespace mqa::kernels::cpu
