#pragma once

#include <nlohmann/json.hpp>
#include <string>

// Replaces one string by another wherever it stands: a "Replace" of a tokenizer.json.
class Replace {
 public:
  // Throws UserError for a pattern that is no string, or an empty one.
  explicit Replace(const nlohmann::json& config);
  Replace(std::string from, std::string to);

  std::string operator()(const std::string& text) const;

 private:
  std::string from_;
  std::string to_;
};
