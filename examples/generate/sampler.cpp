#include "sampler.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/multinomial.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>

Sampler::Sampler(const SamplerOptions& options)
    : options_(options), generator_(at::make_generator<at::CPUGeneratorImpl>(options.seed)) {}

int64_t Sampler::choose(const at::Tensor& logits) {
  if (options_.temperature == 0) {
    return logits.argmax().item<int64_t>();
  }
  return at::multinomial(probabilities(logits), 1, /*replacement=*/false, generator_)
      .item<int64_t>();
}

at::Tensor Sampler::probabilities(const at::Tensor& logits) const {
  const int64_t vocab_size = logits.size(0);
  const auto [kept, ids] = (logits / options_.temperature)
                               .topk(std::min(options_.top_k.value_or(vocab_size), vocab_size));
  at::Tensor weights = kept.softmax(0);
  if (options_.top_p) {
    // A token is dropped if those before it, which are likelier, already reach top_p.
    weights = weights.masked_fill(weights.cumsum(0) - weights >= *options_.top_p, 0);
    weights = weights / weights.sum();
  }
  return at::zeros_like(logits).scatter(0, ids, weights);
}
