#include <algorithm>

#include "merge.cuh"

namespace mqa::kernels::cuda {
namespace {

template <class Format>
Status launch_rows(const MergeArgs& args, Stream stream) {
  return launch(merge_rows<Format>, (args.rows + kMergeWarps - 1) / kMergeWarps, kMergeWarps * 32,
                0, stream, /*dependent=*/false, args);
}

}  // namespace

Status merge(const MergeParams& p, Stream stream) {
  MergeArgs args{};
  args.rows = p.rows, args.width = p.width, args.parts = static_cast<int>(p.parts);
  for (int i = 0; i < args.parts; ++i) {
    args.outs[i] = p.outs[i];
    args.lses[i] = static_cast<const float*>(p.lses[i]);
  }
  args.out = p.out, args.lse = static_cast<float*>(p.lse);
  switch (p.dtype) {
    case DType::kFloat32:
      return launch_rows<Float32>(args, stream);
    case DType::kBFloat16:
      return launch_rows<BFloat16>(args, stream);
    default:
      return launch_rows<Float16>(args, stream);
  }
}

}  // namespace mqa::kernels::cuda
