#include <torch/library.h>

#include "../checks.h"
#include "../library.h"

TORCH_LIBRARY_IMPL(mqa, Meta, m) {
  if (mqa::first_copy()) m.impl("kv_append", mqa::flat_kv_append<mqa::check_kv_append>);
}
