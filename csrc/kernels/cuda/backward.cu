#include "aligned.h"
#include "backward.h"
#include "backward_args.h"

namespace mqa::kernels::cuda {

namespace {

BackwardArgs args_of(const BackwardParams& p) {
  const auto tiles = [](int64_t count, int size) {
    return static_cast<int>((count + size - 1) / size);
  };
  const BackwardShape shape =
      backward_shape(backward_head_dim(p.D, p.D_v), p.dtype == DType::kFloat32);
  const int64_t rows = p.H_q / p.H_kv * p.T;
  BackwardArgs args{};
  args.params = p;
  args.query_aligned = is_aligned(
      p.query, {p.query_batch_stride, p.query_head_stride, p.query_token_stride, p.D}, p.dtype);
  args.grad_out_aligned = is_aligned(
      p.grad_out, {p.grad_out_batch_stride, p.grad_out_head_stride, p.grad_out_token_stride, p.D_v},
      p.dtype);
  args.key_aligned = is_aligned(p.key, p.D);
  args.value_aligned = is_aligned(p.value, p.D_v);
  args.row_tiles = tiles(rows, shape.own);
  args.key_tiles = tiles(p.S, shape.own);
  args.segments =
      static_cast<int>(segments_of(p.H_kv, args.key_tiles, tiles(rows, shape.streamed)));
  args.sums = static_cast<float*>(p.workspace);
  return args;
}

}  // namespace

int64_t backward_workspace(const BackwardParams& p) {
  if (!p.grad_key && !p.grad_value) return 0;
  return p.B * p.H_kv * args_of(p).segments * p.S * (p.D + p.D_v) * int64_t{sizeof(float)};
}

Status attention_backward(const BackwardParams& p, Stream stream) {
  const BackwardArgs args = args_of(p);
  switch (p.dtype) {
    case DType::kBFloat16:
      return launch_backward<bf16>(args, stream);
    case DType::kFloat16:
      return launch_backward<f16>(args, stream);
    default:
      return launch_backward<float>(args, stream);
  }
}

}  // namespace mqa::kernels::cuda
