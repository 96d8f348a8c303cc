// What the kernels compute, in plain structs: pointers, sizes, strides and options. No torch.
// Strides count elements. The last dimension of query, key, value and out is contiguous.
//
// B batch, H_q / H_kv query and KV heads, G = H_q / H_kv, T new tokens, S cache slots, D head_dim
// of query and key, D_v head_dim of value and out.
#pragma once

#include <cstdint>
#include <functional>
#include <type_traits>

namespace mqa::kernels {

enum class DType : uint8_t {
  kFloat64,
  kFloat32,
  kBFloat16,
  kFloat16,
  kInt8,
  kFloat8E4M3,
  kBool,
};

constexpr int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return 8;
    case DType::kFloat32:
      return 4;
    case DType::kBFloat16:
    case DType::kFloat16:
      return 2;
    default:
      return 1;
  }
}

// float32 dequantisation scales, one per token and head, or one per head with the other strides 0.
struct Scales {
  float* data = nullptr;
  int64_t row_stride = 0, head_stride = 0, slot_stride = 0;
};

// That lie side by side where keys are packed.
constexpr int64_t kPackedSlots = 16;

// Keys or values: [B, H_kv, S, D], or with a block table a pool [num_pages, H_kv, page_size, D].
// Packed keys, which the CPU alone reads: [.., S / 16, D, 16], the last two dimensions contiguous.
struct Cache {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t row_stride = 0;  // between batch rows, or between pages
  int64_t head_stride = 0;
  int64_t slot_stride = 0;  // of packed keys between groups of 16
  Scales scales;            // data is null unless the dtype is quantised
  bool is_packed = false;
};

// Which page holds slots [i * page_size, (i + 1) * page_size) of a row; null for a contiguous
// cache.
struct BlockTable {
  const int32_t* pages = nullptr;
  int64_t row_stride = 0, page_stride = 0;
  int64_t page_size = 1;
  int64_t num_pages = 0;  // of the pool
};

struct Mask {
  const void* data = nullptr;
  DType dtype = DType::kBool;  // kBool: true attends. Otherwise added to the scores; -inf hides.
  int64_t batch_stride = 0, head_stride = 0, query_stride = 0, key_stride = 0;
};

struct AttentionParams {
  int64_t B, H_q, H_kv, T, S, D, D_v;

  const void* query;  // [B, H_q, T, D]
  DType dtype;        // of query and out
  int64_t query_batch_stride, query_head_stride, query_token_stride;

  Cache key, value;
  BlockTable block_table;
  const int64_t* seq_lens;  // [B] valid slots, or null: all S

  Mask mask;
  bool is_causal;
  int64_t window_left, window_right;  // negative: unlimited
  double scale, softcap;              // softcap 0: none

  // float32, or float64 where query is
  const void* alibi_slopes;  // [B, H_q] by these strides, or null
  int64_t alibi_batch_stride, alibi_head_stride;
  const void* sinks;  // [H_q] or null
  void* lse;          // [B, H_q, T], contiguous, or null

  void* out;  // [B, H_q, T, D_v], contiguous
};

// Of a call of attention, whose results out and lse are. Gradients that are null are not wanted.
struct BackwardParams : AttentionParams {
  const void* grad_out;  // [B, H_q, T, D_v] in dtype, the last dimension contiguous
  int64_t grad_out_batch_stride, grad_out_head_stride, grad_out_token_stride;
  const void* grad_lse;  // [B, H_q, T], contiguous, as lse, or null: zeros

  // [B, H_q, T], contiguous, as lse: sum_d grad_out out - grad_lse. The gradient of a row's sink is
  // -exp(sink - lse) times it.
  void* row_sums;
  void* grad_query;             // [B, H_q, T, D] in dtype, contiguous
  void *grad_key, *grad_value;  // [B, H_kv, S, D] and [B, H_kv, S, D_v], contiguous
  DType grad_cache_dtype;       // theirs: float32 (float64) or dtype
  Mask grad_mask;  // as lse, zeros to begin with; strides as mask's, 0 where it is broadcast

  void* workspace;  // of backward_workspace() bytes
};

struct AppendParams {
  int64_t B, H_kv, T;
  const int64_t* positions;  // [B]; on CPU already checked against the capacity
  BlockTable block_table;

  // One side of the cache and the rows [B, H_kv, T, width] that go into it.
  struct Side {
    Cache cache;
    bool scale_per_head;  // quantise by the given scales instead of writing one per token
    int64_t width;
    const void* source;
    DType source_dtype;
    int64_t source_batch_stride, source_head_stride, source_token_stride;
  } key, value;

  int64_t capacity = 0;  // slots of a cache row: S, or with a block table pages * page_size
};

struct MergeParams {
  int64_t parts, rows, width;
  DType dtype;              // of the outs
  const void* const* outs;  // parts x [rows, width], contiguous
  const void* const* lses;  // parts x [rows], float32 (float64 for float64)
  void* out;                // [rows, width]
  void* lse;                // [rows]
};

// A callable body(begin, end) that outlives the call it is passed to: borrowed, where std::function
// would allocate a copy.
class RangeBody {
 public:
  template <class Body>
    requires(!std::is_same_v<Body, RangeBody>)
  RangeBody(const Body& body)  // implicit, as a parameter wants it
      : body_(&body), call_([](const void* body, int64_t begin, int64_t end) {
          (*static_cast<const Body*>(body))(begin, end);
        }) {}

  void operator()(int64_t begin, int64_t end) const { call_(body_, begin, end); }

 private:
  const void* body_;
  void (*call_)(const void* body, int64_t begin, int64_t end);
};

// Calls body(begin, end) over disjoint ranges that cover [0, count).
struct Threads {
  int64_t count = 1;
  std::function<void(int64_t count, RangeBody body)> parallel_for =
      [](int64_t count, RangeBody body) { body(0, count); };
};

}  // namespace mqa::kernels
