#include "torchscript_model.h"

#include <ATen/ops/tensor.h>
#include <torch/csrc/jit/serialization/import.h>

#include "error.h"
#include "kv_heads.h"

TorchScriptModel::TorchScriptModel(const std::string& path) {
  torch::jit::ExtraFilesMap files{{"config.json", ""}, {"tokenizer.json", ""}, {"chat.json", ""}};
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
  read_files(std::move(files));
}

void TorchScriptModel::convert_kv_heads(int64_t num_kv_heads) {
  ::convert_kv_heads(module_, num_heads(), num_kv_heads);
}

Model::Cache TorchScriptModel::new_cache(int64_t capacity, const std::string& dtype) {
  auto new_cache = module_.get_method("new_cache");
  std::vector<c10::IValue> arguments{int64_t{1}, capacity};
  if (dtype != "auto") {
    if (!new_cache.function().getSchema().argumentIndexWithName("dtype")) {
      throw UserError("the model has no choice of --cache-dtype: export it again with this mqa");
    }
    arguments.emplace_back(dtype);
  }
  return new_cache(arguments).toTensorVector();
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
