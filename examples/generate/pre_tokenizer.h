#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "regex.h"

// Cuts text into the words that byte-pair encoding works on: the "pre_tokenizer" of a
// tokenizer.json.
class PreTokenizer {
 public:
  // Takes ByteLevel, Digits, isolating Split, and a Sequence of them that ends with ByteLevel;
  // throws UserError for anything else.
  explicit PreTokenizer(const nlohmann::json& config);

  // `text` must be valid UTF-8.
  std::vector<std::string> split(std::string_view text) const;

 private:
  struct Step {
    bool add_prefix_space;
    std::optional<Regex> regex;
  };
  void add_steps(const nlohmann::json& config);

  std::vector<Step> steps_;
  bool byte_level_ = false;
};
