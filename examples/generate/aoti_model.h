#pragma once

#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <memory>
#include <string>
#include <vector>

#include "model.h"

// A model compiled by mqa.export_aoti.
class AotiModel : public Model {
 public:
  explicit AotiModel(const std::string& path);

  void convert_kv_heads(int64_t num_kv_heads) override;
  Cache new_cache(int64_t capacity, const std::string& dtype) override;
  at::Tensor prefill(const std::vector<int64_t>& tokens, const Cache& cache) override;
  at::Tensor decode(int64_t token, int64_t position, const Cache& cache) override;

 private:
  at::Tensor extend(const std::vector<int64_t>& tokens, int64_t position, const Cache& cache);

  std::unique_ptr<torch::inductor::AOTIModelPackageLoader> loader_;
  int64_t num_caches_ = 0;  // a key and a value cache for each layer
  int64_t num_kv_heads_ = 0;
  int64_t head_dim_ = 0;
  at::ScalarType dtype_ = at::kFloat;
};
