#include "replace.h"

#include <utility>

#include "error.h"

namespace {

std::string string_pattern(const nlohmann::json& pattern) {
  const auto text = pattern.value("String", std::string());
  if (text.empty()) {
    throw UserError("expected the tokenizer to replace a String, got " + pattern.dump());
  }
  return text;
}

}  // namespace

Replace::Replace(const nlohmann::json& config)
    : Replace(string_pattern(config.at("pattern")), config.at("content").get<std::string>()) {}

Replace::Replace(std::string from, std::string to) : from_(std::move(from)), to_(std::move(to)) {}

std::string Replace::operator()(const std::string& text) const {
  std::string replaced;
  size_t begin = 0;
  for (size_t i; (i = text.find(from_, begin)) != std::string::npos; begin = i + from_.size()) {
    replaced.append(text, begin, i - begin).append(to_);
  }
  return replaced.append(text, begin);
}
