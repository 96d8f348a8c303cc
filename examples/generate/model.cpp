#include "model.h"

#include <ATen/ops/tensor.h>
#include <torch/csrc/jit/serialization/import.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "error.h"

Model::Model(const std::string& path) {
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
  try {
    read_config(files["config.json"]);
  } catch (const nlohmann::json::exception& error) {
    throw UserError("cannot read config.json in " + path + ": " + error.what());
  }
  tokenizer_json_ = files["tokenizer.json"];
}

void Model::read_config(const std::string& json_text) {
  const auto config = nlohmann::json::parse(json_text);
  vocab_size_ = config.at("vocab_size").get<int64_t>();
  max_position_ = config.at("max_position").get<int64_t>();
  eos_token_ids_ = config.at("eos_token_ids").get<std::vector<int64_t>>();
}

Model::Cache Model::new_cache(int64_t capacity) {
  return module_.get_method("new_cache")({int64_t{1}, capacity}).toTensorList();
}

at::Tensor Model::prefill(const std::vector<int64_t>& tokens, const Cache& cache) {
  const auto batch = at::tensor(tokens).unsqueeze(0);
  const auto lengths = at::tensor({static_cast<int64_t>(tokens.size())});
  return module_.get_method("prefill")({batch, lengths, cache}).toTensor().squeeze(0);
}

at::Tensor Model::decode(int64_t token, int64_t position, const Cache& cache) {
  return module_.get_method("decode")({at::tensor({token}), at::tensor({position}), cache})
      .toTensor()
      .squeeze(0);
}

bool Model::ends_text(int64_t token) const {
  return std::ranges::find(eos_token_ids_, token) != eos_token_ids_.end();
}

std::string one_sentence(const std::exception& error) {
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  std::string text = torch_error ? torch_error->what_without_backtrace() : error.what();
  // TorchScript's interpreter puts its own traceback before "SomeError: message".
  constexpr std::string_view kMarker = "Error: ";
  if (const size_t marker = text.rfind(kMarker); marker != std::string::npos) {
    text.erase(0, marker + kMarker.size());
  }
  text.erase(0, text.find_first_not_of(" \n"));
  return text.substr(0, std::min(text.find('\n'), text.find(". ")));
}
