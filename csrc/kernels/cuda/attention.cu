#include "aligned.h"
#include "attention.h"
#include "combine.cuh"
#include "instances.h"

namespace mqa::kernels::cuda {
namespace {

template <class Query>
Status launch_stored(const Plan& plan, const AttentionArgs& args, Stream stream) {
  switch (args.params.key.dtype) {
    case DType::kInt8:
      return launch_attend<Query, int8_t>(plan, args, stream);
    case DType::kFloat8E4M3:
      return launch_attend<Query, e4m3>(plan, args, stream);
    default:
      return launch_attend<Query, Query>(plan, args, stream);
  }
}

template <class Query>
Status launch_query(const Plan& plan, const AttentionArgs& args, const Device& device,
                    Stream stream) {
  const Status status = launch_stored<Query>(plan, args, stream);
  if (status != Status{} || plan.parts == 1) return status;
  const AttentionParams& p = args.params;
  const int64_t blocks = p.B * p.H_q * p.T * ((p.D_v + kCombineColumns - 1) / kCombineColumns);
  return launch(combine<Query>, blocks, kCombineWarps * 32, kCombineSmem, stream,
                /*dependent=*/device.compute_capability >= 90, args);
}

}  // namespace

int64_t attention_workspace(const AttentionParams& p, const Device& device) {
  const Plan plan = plan_of(p, device);
  return plan.partials * (plan.partial_width * int64_t{sizeof(float)} + int64_t{sizeof(Softmax)});
}

Status attention(const AttentionParams& p, const Device& device, void* workspace, Stream stream) {
  const Plan plan = plan_of(p, device);
  AttentionArgs args{};
  args.params = p;
  args.query_aligned = is_aligned(
      p.query, {p.query_batch_stride, p.query_head_stride, p.query_token_stride, p.D}, p.dtype);
  args.key_aligned = is_aligned(p.key, p.D);
  args.value_aligned = is_aligned(p.value, p.D_v);
  args.row_tiles = plan.row_tiles;
  args.tile_rows = plan.tile_rows;
  args.parts = plan.parts;
  args.part_chunks = plan.part_chunks;
  args.partial_out = static_cast<float*>(workspace);
  args.partial_softmax =
      reinterpret_cast<Softmax*>(args.partial_out + plan.partials * plan.partial_width);
  args.partial_width = plan.partial_width;
  switch (p.dtype) {
    case DType::kBFloat16:
      return launch_query<bf16>(plan, args, device, stream);
    case DType::kFloat16:
      return launch_query<f16>(plan, args, device, stream);
    default:
      return launch_query<float>(plan, args, device, stream);
  }
}

}  // namespace mqa::kernels::cuda
