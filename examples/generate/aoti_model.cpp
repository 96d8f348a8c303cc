#include "aoti_model.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>

#include <map>

#include "error.h"

namespace {

const std::map<std::string, at::ScalarType> kDtypes{{"float32", at::kFloat},
                                                    {"float64", at::kDouble},
                                                    {"bfloat16", at::kBFloat16},
                                                    {"float16", at::kHalf}};

}  // namespace

AotiModel::AotiModel(const std::string& path) {
  try {
    loader_ = std::make_unique<torch::inductor::AOTIModelPackageLoader>(path);
  } catch (const std::exception& error) {
    throw UserError("expected an AOTInductor package in " + path + ": " + one_sentence(error));
  }
  auto files = loader_->get_metadata();
  if (!files.contains("config.json")) {
    throw UserError("expected a model exported by mqa.export_aoti, got " + path +
                    " without config.json");
  }
  const auto config = read_files(std::move(files));
  num_caches_ = 2 * config.at("num_layers").get<int64_t>();
  num_kv_heads_ = config.at("num_kv_heads").get<int64_t>();
  head_dim_ = config.at("head_dim").get<int64_t>();
  dtype_ = kDtypes.at(config.at("dtype").get<std::string>());
}

void AotiModel::convert_kv_heads(int64_t /*num_kv_heads*/) {
  throw UserError("compiled code has fixed --kv-heads: mqa.convert the model before the export");
}

Model::Cache AotiModel::new_cache(int64_t capacity, const std::string& dtype) {
  if (dtype != "auto") {
    throw UserError("compiled code has a fixed --cache-dtype: expected auto, got " + dtype);
  }
  Cache cache;
  for (int64_t i = 0; i < num_caches_; ++i) {
    cache.push_back(at::empty({1, num_kv_heads_, capacity, head_dim_}, dtype_));
  }
  return cache;
}

at::Tensor AotiModel::prefill(const std::vector<int64_t>& tokens, const Cache& cache) {
  return extend(tokens, 0, cache);
}

at::Tensor AotiModel::decode(int64_t token, int64_t position, const Cache& cache) {
  return extend({token}, position, cache);
}

at::Tensor AotiModel::extend(const std::vector<int64_t>& tokens, int64_t position,
                             const Cache& cache) {
  const auto length = static_cast<int64_t>(tokens.size());
  std::vector<at::Tensor> inputs{at::tensor(tokens).unsqueeze(0), at::tensor({length}),
                                 at::tensor({position})};
  inputs.insert(inputs.end(), cache.begin(), cache.end());
  return loader_->run(inputs).front().squeeze(0);
}
