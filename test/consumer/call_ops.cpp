// Calls the ops through the C++ API and prints the sum of what attention returns.
#include <ATen/ATen.h>
#include <mqa/mqa.h>

#include <cstdio>

int main() {
  const at::Tensor query = at::arange(64, at::kFloat).reshape({2, 4, 1, 8}) / 64;
  const at::Tensor token = at::arange(16, at::kFloat).reshape({2, 1, 1, 8}) / 16;
  const at::Tensor cache = at::ones({2, 1, 5, 8});
  const at::Tensor positions = at::tensor({3, 0}, at::kLong);

  mqa::kv_append(cache, cache, token, token, positions);
  const at::Tensor out = mqa::attention(query, cache, cache, {.seq_lens = positions + 1});
  std::printf("%.17g\n", out.sum().item<double>());
}
