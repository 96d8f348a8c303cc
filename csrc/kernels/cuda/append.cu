#include "append.cuh"
#include "append.h"

namespace mqa::kernels::cuda {
namespace {

using Side = AppendParams::Side;

bool divides(int64_t bytes, const void* data, std::initializer_list<int64_t> elements,
             DType dtype) {
  bool all = reinterpret_cast<uintptr_t>(data) % bytes == 0;
  for (int64_t count : elements) all &= count * size_of(dtype) % bytes == 0;
  return all;
}

// Whether rows can be read and written `count` elements at a time.
bool is_aligned(const Side& side, int64_t count) {
  const Cache& cache = side.cache;
  return divides(count * size_of(side.source_dtype), side.source,
                 {side.source_batch_stride, side.source_head_stride, side.source_token_stride,
                  side.width},
                 side.source_dtype) &&
         divides(count * size_of(cache.dtype), cache.data,
                 {cache.row_stride, cache.head_stride, cache.slot_stride}, cache.dtype);
}

template <class From, class To, int kCount>
Status launch_rows(AppendArgs args, int64_t width, Stream stream) {
  const AppendParams& p = args.params;
  args.row_lanes = 1;
  while (args.row_lanes < 32 && args.row_lanes * kCount < width) args.row_lanes *= 2;
  const int64_t block_rows = kAppendWarps * 32 / args.row_lanes;
  const int64_t rows = args.sides * p.B * p.H_kv * p.T;
  return launch(append_rows<From, To, kCount>, (rows + block_rows - 1) / block_rows,
                kAppendWarps * 32, 0, stream, /*dependent=*/false, args);
}

// Sides of the same dtypes.
template <class From, class To>
Status launch_sides(const AppendArgs& args, Stream stream) {
  constexpr int kCount =
      16 / std::max(sizeof(typename From::Storage), sizeof(typename To::Storage));
  bool aligned = true;
  int64_t width = 0;
  for (int i = args.first_side; i < args.first_side + args.sides; ++i) {
    const Side& side = i == 0 ? args.params.key : args.params.value;
    aligned &= is_aligned(side, kCount);
    width = std::max(width, side.width);
  }
  return aligned ? launch_rows<From, To, kCount>(args, width, stream)
                 : launch_rows<From, To, 1>(args, width, stream);
}

template <class From>
Status launch_from(const AppendArgs& args, DType cache, Stream stream) {
  switch (cache) {
    case DType::kFloat32:
      return launch_sides<From, Float32>(args, stream);
    case DType::kBFloat16:
      return launch_sides<From, BFloat16>(args, stream);
    case DType::kFloat16:
      return launch_sides<From, Float16>(args, stream);
    case DType::kInt8:
      return launch_sides<From, Int8>(args, stream);
    default:
      return launch_sides<From, Float8E4M3>(args, stream);
  }
}

Status launch_any(const AppendArgs& args, Stream stream) {
  const Side& side = args.first_side == 0 ? args.params.key : args.params.value;
  switch (side.source_dtype) {
    case DType::kFloat32:
      return launch_from<Float32>(args, side.cache.dtype, stream);
    case DType::kBFloat16:
      return launch_from<BFloat16>(args, side.cache.dtype, stream);
    default:
      return launch_from<Float16>(args, side.cache.dtype, stream);
  }
}

}  // namespace

Status append(const AppendParams& p, Stream stream) {
  const bool alike =
      p.key.source_dtype == p.value.source_dtype && p.key.cache.dtype == p.value.cache.dtype;
  if (alike) return launch_any({p, 0, 2, 0}, stream);
  const Status status = launch_any({p, 0, 1, 0}, stream);
  return status == kSuccess ? launch_any({p, 1, 1, 0}, stream) : status;
}

}  // namespace mqa::kernels::cuda
