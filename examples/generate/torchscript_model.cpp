#include "torchscript_model.h"

#include <ATen/ops/tensor.h>
#include <torch/csrc/jit/serialization/import.h>

#include "error.h"

TorchScriptModel::TorchScriptModel(const std::string& path) {
  torch::jit::ExtraFilesMap files{{"config.json", ""}, {"tokenizer.json", ""}};
  try {
    module_ = torch::jit::load(path, at::kCPU, files);
  } catch (const std::exception& error) {
    throw UserError("expected a TorchScript model in " + path + ": " + one_sentence(error));
  }
  for (const char* method : {"new_cache", "prefill", "decode"}) {
    if (!module_.find_method(method)) {
      throw UserError("expected a model exported by mqa.export_torchscript, got " + path +
                      " without a method " + method);
    }
  }
  read_config(nlohmann::json::parse(files["config.json"]));
  tokenizer_json_ = files["tokenizer.json"];
}

Model::Cache TorchScriptModel::new_cache(int64_t capacity) {
  return module_.get_method("new_cache")({int64_t{1}, capacity}).toTensorVector();
}

at::Tensor TorchScriptModel::prefill(const std::vector<int64_t>& tokens, const Cache& cache) {
  const auto batch = at::tensor(tokens).unsqueeze(0);
  const auto lengths = at::tensor({static_cast<int64_t>(tokens.size())});
  return module_.get_method("prefill")({batch, lengths, cache}).toTensor().squeeze(0);
}

at::Tensor TorchScriptModel::decode(int64_t token, int64_t position, const Cache& cache) {
  return module_.get_method("decode")({at::tensor({token}), at::tensor({position}), cache})
      .toTensor()
      .squeeze(0);
}
