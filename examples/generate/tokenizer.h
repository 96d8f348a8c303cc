#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bpe.h"
#include "pre_tokenizer.h"
#include "regex.h"

// A byte-level BPE tokenizer as a Hugging Face tokenizer.json describes it.
class Tokenizer {
 public:
  // Throws UserError for a kind of tokenizer that is not implemented, a JSON exception for a
  // missing or mistyped entry.
  explicit Tokenizer(const nlohmann::json& config);

  // Throws UserError if `text` is not valid UTF-8.
  std::vector<int64_t> encode(std::string_view text) const;

  // The bytes of one token, which may end within a character; none for special tokens and for ids
  // outside the vocabulary.
  std::string decode(int64_t id) const;

 private:
  void read_added_tokens(const nlohmann::json& added_tokens);
  void read_post_processor(const nlohmann::json& config);

  Bpe bpe_;
  PreTokenizer pre_tokenizer_;
  std::optional<Regex> added_regex_;  // finds the added tokens in a text
  std::map<std::string, int64_t, std::less<>> added_ids_;
  std::map<int64_t, std::string> added_text_;  // empty for special tokens
  std::vector<int64_t> prefix_;                // ids before every text
  std::vector<int64_t> suffix_;                // ids after every text
};

// Reads the text of a tokenizer.json; every error is a UserError.
Tokenizer parse_tokenizer(const std::string& json_text);
