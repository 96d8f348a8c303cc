// A few attention kernels: quick to build.
#include <gtest/gtest.h>

#include "kernels/attention_call.h"
#include "kernels/cuda/attend.cuh"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/instances.h"

namespace mqa::kernels {
namespace cuda {

template <int kD, int kRowWarps, class Stored>
Status launch_tile(const Plan& plan, const AttentionArgs& args, Stream stream) {
  using Tile = Tile<kD, kD, kRowWarps, 1, 1, bf16, Stored>;
  return launch(attend<Tile>, plan.blocks, Tile::kThreads, Tile::smem_bytes(plan.part_chunks > 1),
                stream, /*dependent=*/false, args);
}

template <class Query, class Stored>
Status launch_attend(const Plan& plan, const AttentionArgs& args, Stream stream) {
  if constexpr (std::is_same_v<Query, bf16> && !std::is_same_v<Stored, e4m3>) {
    if (plan.head_dim == 64) {
      if (plan.tile_rows == 16) return launch_tile<64, 1, Stored>(plan, args, stream);
      if (plan.tile_rows == 32) return launch_tile<64, 2, Stored>(plan, args, stream);
    } else if constexpr (std::is_same_v<Stored, bf16>) {
      if (plan.tile_rows == 16) return launch_tile<128, 1, Stored>(plan, args, stream);
    }
  }
  throw std::logic_error("no such kernel in this test");
}
template Status launch_attend<bf16, bf16>(const Plan&, const AttentionArgs&, Stream);
template Status launch_attend<bf16, int8_t>(const Plan&, const AttentionArgs&, Stream);
template Status launch_attend<bf16, e4m3>(const Plan&, const AttentionArgs&, Stream);
template Status launch_attend<f16, f16>(const Plan&, const AttentionArgs&, Stream);
template Status launch_attend<f16, int8_t>(const Plan&, const AttentionArgs&, Stream);
template Status launch_attend<f16, e4m3>(const Plan&, const AttentionArgs&, Stream);
template Status launch_attend<float, float>(const Plan&, const AttentionArgs&, Stream);
template Status launch_attend<float, int8_t>(const Plan&, const AttentionArgs&, Stream);
template Status launch_attend<float, e4m3>(const Plan&, const AttentionArgs&, Stream);

}  // namespace cuda

void run(const AttentionParams& params, const Threads& threads) {
  const cuda::Device device{.multiprocessors = static_cast<int>(threads.count),
                            .smem_per_block = 99 * 1024,
                            .compute_capability = 80};
  std::vector<char> workspace(cuda::attention_workspace(params, device));
  ASSERT_EQ(cuda::attention(params, device, workspace.data(), {}), cuda::kSuccess);
}

}  // namespace mqa::kernels
