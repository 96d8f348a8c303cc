#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

// Cuts text into the words that byte-pair encoding works on: the "pre_tokenizer" of a
// tokenizer.json.
class PreTokenizer {
 public:
  // Takes ByteLevel, Digits, Metaspace, Split, a Sequence of them, and null, which makes the text
  // one word; throws UserError for anything else.
  explicit PreTokenizer(const nlohmann::json& config);

  // The words of `text`, which must be valid UTF-8. Some pre_tokenizers treat the beginning of the
  // whole text in a way of their own: `begins_text` says whether that is where `text` stands.
  std::vector<std::string> split(std::string_view text, bool begins_text) const;

 private:
  // Cuts a word further.
  using Step = std::function<std::vector<std::string>(const std::string& word, bool begins_text)>;

  void add_steps(const nlohmann::json& config);

  std::vector<Step> steps_;
};
