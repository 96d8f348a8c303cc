#include "normalizer.h"

#include "error.h"
#include "replace.h"

Normalizer::Normalizer(const nlohmann::json& config) {
  if (!config.is_null()) {
    add_steps(config);
  }
}

void Normalizer::add_steps(const nlohmann::json& config) {
  const auto type = config.at("type").get<std::string>();
  if (type == "Sequence") {
    for (const nlohmann::json& step : config.at("normalizers")) {
      add_steps(step);
    }
  } else if (type == "Prepend") {
    steps_.push_back([prefix = config.at("prepend").get<std::string>()](const std::string& text) {
      return text.empty() ? text : prefix + text;
    });
  } else if (type == "Replace") {
    steps_.push_back(Replace(config));
  } else {
    throw UserError("expected a normalizer of type Prepend, Replace or a Sequence of them, got " +
                    type);
  }
}

std::string Normalizer::operator()(std::string text) const {
  for (const auto& step : steps_) {
    text = step(text);
  }
  return text;
}
