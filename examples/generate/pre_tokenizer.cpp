#include "pre_tokenizer.h"

#include "error.h"

namespace {

// GPT-2's words: contractions, then runs of letters, of digits or of other characters, each with
// the space before it, then white space.
constexpr const char* kByteLevelWords =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

std::string split_pattern(const nlohmann::json& config) {
  if (config.at("behavior") != "Isolated") {
    throw UserError("expected a pre_tokenizer Split of behavior \"Isolated\", got " +
                    config.at("behavior").dump());
  }
  const nlohmann::json& pattern = config.at("pattern");
  return pattern.contains("Regex") ? pattern.at("Regex").get<std::string>()
                                   : regex_escape(pattern.at("String").get<std::string>());
}

}  // namespace

PreTokenizer::PreTokenizer(const nlohmann::json& config) {
  if (!config.is_null()) {
    add_steps(config);
  }
  if (!byte_level_) {
    throw UserError("expected a tokenizer whose pre_tokenizer ends with ByteLevel, got " +
                    config.dump());
  }
}

void PreTokenizer::add_steps(const nlohmann::json& config) {
  if (byte_level_) {
    throw UserError("expected ByteLevel to be the last step of the pre_tokenizer, got " +
                    config.dump() + " after it");
  }
  const auto type = config.at("type").get<std::string>();
  if (type == "Sequence") {
    for (const nlohmann::json& step : config.at("pretokenizers")) {
      add_steps(step);
    }
  } else if (type == "ByteLevel") {
    byte_level_ = true;
    Step step{config.at("add_prefix_space").get<bool>(), std::nullopt};
    if (config.value("use_regex", true)) {
      step.regex.emplace(kByteLevelWords);
    }
    steps_.push_back(std::move(step));
  } else if (type == "Digits") {
    steps_.push_back({false, Regex(config.at("individual_digits") ? R"(\p{N})" : R"(\p{N}+)")});
  } else if (type == "Split") {
    steps_.push_back({false, Regex(split_pattern(config))});
  } else {
    throw UserError(
        "expected a pre_tokenizer of type ByteLevel, Digits, Split or a Sequence of them, got " +
        type);
  }
}

std::vector<std::string> PreTokenizer::split(std::string_view text) const {
  std::vector<std::string> words{std::string(text)};
  for (const Step& step : steps_) {
    std::vector<std::string> next_words;
    for (std::string& word : words) {
      if (step.add_prefix_space && !word.starts_with(' ')) {
        word.insert(0, 1, ' ');
      }
      if (!step.regex) {
        next_words.push_back(word);
        continue;
      }
      for (const std::string_view piece : step.regex->split(word)) {
        next_words.emplace_back(piece);
      }
    }
    words = std::move(next_words);
  }
  return words;
}
