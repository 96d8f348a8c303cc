// Launches the kernels of gradients. Included once for each dtype.
#pragma once

#include "backward.cuh"

namespace mqa::kernels::cuda {

template <class Query, int kD>
Status launch_head_dim(const BackwardArgs& args, Stream stream) {
  constexpr BackwardShape kShape = backward_shape(kD, std::is_same_v<Query, float>);
  using Tile = BackwardTile<kD, kShape.own / 16, kD == 256 ? 2 : 1, kShape.streamed, Query>;
  const BackwardParams& p = args.params;
  const int64_t heads = p.B * p.H_kv;
  if (p.grad_query) {
    const Status status =
        launch(differentiate_queries<Tile>, heads * args.row_tiles, Tile::kThreads,
               Tile::kSmemBytes, stream, /*dependent=*/false, args);
    if (status != Status{}) return status;
  }
  if (!p.grad_key && !p.grad_value) return Status{};
  return launch(differentiate_keys<Tile>, heads * args.segments * args.key_tiles, Tile::kThreads,
                Tile::kSmemBytes, stream, /*dependent=*/false, args);
}

template <class Out>
Status launch_add_segments(const BackwardArgs& args, Stream stream) {
  const BackwardParams& p = args.params;
  if (!p.grad_key && !p.grad_value) return Status{};
  const int64_t blocks = (p.B * p.H_kv * p.S + kRowKernelWarps - 1) / kRowKernelWarps;
  return launch(add_segments<Out>, blocks, kRowKernelWarps * 32, 0, stream, /*dependent=*/false,
                args);
}

template <class Query>
Status launch_backward(const BackwardArgs& args, Stream stream) {
  const BackwardParams& p = args.params;
  const int64_t blocks = (p.B * p.H_q * p.T + kRowKernelWarps - 1) / kRowKernelWarps;
  Status status = launch(sum_rows<Query>, blocks, kRowKernelWarps * 32, 0, stream,
                         /*dependent=*/false, args);
  if (status != Status{}) return status;
  switch (backward_head_dim(p.D, p.D_v)) {
    case 64:
      status = launch_head_dim<Query, 64>(args, stream);
      break;
    case 128:
      status = launch_head_dim<Query, 128>(args, stream);
      break;
    default:
      status = launch_head_dim<Query, 256>(args, stream);
  }
  if (status != Status{}) return status;
  if (p.grad_cache_dtype == DType::kFloat32) return launch_add_segments<float>(args, stream);
  return launch_add_segments<Query>(args, stream);
}

}  // namespace mqa::kernels::cuda
