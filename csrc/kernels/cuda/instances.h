// One function for each pair of dtypes, so that they compile side by side.
#pragma once

#include "attention_args.h"
#include "plan.h"

namespace mqa::kernels::cuda {

template <class Query, class Stored>
Status launch_attend(const Plan& plan, const AttentionArgs& args, Stream stream);

}  // namespace mqa::kernels::cuda
