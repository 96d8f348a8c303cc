// torch.ops.mqa.cpu_isa. It has no tensor to dispatch on.
#include "kernels/cpu/isa.h"

#include <torch/library.h>

#include <string>

#include "library.h"

namespace mqa::cpu {
namespace {

std::string cpu_isa() { return kernels::cpu::isa_name(kernels::cpu::current_isa()); }

}  // namespace
}  // namespace mqa::cpu

TORCH_LIBRARY_IMPL(mqa, CompositeExplicitAutograd, m) {
  if (mqa::first_copy()) m.impl("cpu_isa", mqa::cpu::cpu_isa);
}
