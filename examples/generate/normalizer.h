#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

// Rewrites text before it is cut into words: the "normalizer" of a tokenizer.json.
class Normalizer {
 public:
  // Takes Prepend, Replace of a string, a Sequence of them, and null, which leaves the text alone;
  // throws UserError for anything else.
  explicit Normalizer(const nlohmann::json& config);

  std::string operator()(std::string text) const;

 private:
  void add_steps(const nlohmann::json& config);

  std::vector<std::function<std::string(const std::string&)>> steps_;
};
