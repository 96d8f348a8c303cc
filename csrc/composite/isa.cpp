// torch.ops.mqa.cpu_isa. It has no tensor to dispatch on.
#include "kernels/cpu/isa.h"

#include <torch/library.h>

#include <string>

#include "library.h"

namespace mqa::composite {
namespace {

std::string cpu_isa() { return kernels::cpu::isa_name(kernels::cpu::current_isa()); }

}  // namespace
}  // namespace mqa::composite

TORCH_LIBRARY_IMPL(mqa, CompositeExplicitAutograd, m) {
  if (mqa::first_copy()) m.impl("cpu_isa", mqa::composite::cpu_isa);
}
