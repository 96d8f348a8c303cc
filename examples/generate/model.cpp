#include "model.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "aoti_model.h"
#include "error.h"
#include "torchscript_model.h"

std::unique_ptr<Model> load_model(const std::string& path) {
  try {
    if (path.ends_with(".pt2")) {
      return std::make_unique<AotiModel>(path);
    }
    return std::make_unique<TorchScriptModel>(path);
  } catch (const nlohmann::json::exception& error) {
    throw UserError("cannot read the configuration in " + path + ": " + error.what());
  }
}

nlohmann::json Model::read_files(std::unordered_map<std::string, std::string> files) {
  auto config = nlohmann::json::parse(files["config.json"]);
  vocab_size_ = config.at("vocab_size").get<int64_t>();
  num_heads_ = config.at("num_heads").get<int64_t>();
  max_position_ = config.at("max_position").get<int64_t>();
  eos_token_ids_ = config.at("eos_token_ids").get<std::vector<int64_t>>();
  tokenizer_json_ = std::move(files["tokenizer.json"]);
  if (!files["chat.json"].empty()) {
    const auto chat = nlohmann::json::parse(files["chat.json"]);
    chat_ = {chat.at("before").get<std::string>(), chat.at("after").get<std::string>()};
  }
  return config;
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
