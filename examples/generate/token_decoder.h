#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

// Turns tokens as the vocabulary spells them into text: the "decoder" of a tokenizer.json.
class TokenDecoder {
 public:
  // What a text loses at its beginning: up to `count` times `text`.
  struct Strip {
    std::string text;
    size_t count = 0;
  };

  // Takes ByteFallback, ByteLevel, Fuse, Replace of a string, Strip of the beginning after Fuse,
  // and a Sequence of them; throws UserError for anything else.
  explicit TokenDecoder(const nlohmann::json& config);

  // The bytes of one token, which may end within a character.
  std::string operator()(std::string token) const;

  const Strip& strip() const { return strip_; }

 private:
  void add_steps(const nlohmann::json& config);
  void read_strip(const nlohmann::json& config);

  std::vector<std::function<std::string(const std::string&)>> steps_;
  bool fused_ = false;  // the steps from here on see the whole text
  Strip strip_;
};
