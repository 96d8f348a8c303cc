#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

struct SamplerOptions {
  double temperature = 0;        // 0 takes the likeliest token; otherwise logits are divided by it
  std::optional<int64_t> top_k;  // sample among the `top_k` likeliest tokens only
  std::optional<double> top_p;   // among the fewest likeliest whose probabilities reach `top_p`
  uint64_t seed = 0;
};

// Chooses tokens. Draws the same ones as mqa.generate in Python for the same logits and options.
class Sampler {
 public:
  explicit Sampler(const SamplerOptions& options);

  // The next token for logits [vocab_size].
  int64_t choose(const at::Tensor& logits);

 private:
  at::Tensor probabilities(const at::Tensor& logits) const;

  SamplerOptions options_;
  at::Generator generator_;
};
