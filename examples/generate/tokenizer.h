#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "bpe.h"
#include "normalizer.h"
#include "pre_tokenizer.h"
#include "token_decoder.h"
#include "token_finder.h"

// A BPE tokenizer as a Hugging Face tokenizer.json describes it.
class Tokenizer {
 public:
  // Throws UserError for a kind of tokenizer that is not implemented, a JSON exception for a
  // missing or mistyped entry.
  explicit Tokenizer(const nlohmann::json& config);

  // The ids of `text`, and of what stands around every text, such as the token that begins it.
  // Throws UserError if `text` is not valid UTF-8.
  std::vector<int64_t> encode(std::string_view text) const;

  // The same without what stands around every text.
  std::vector<int64_t> encode_bare(std::string_view text) const;

  // The bytes of one token, which may end within a character; none for special tokens and for ids
  // outside the vocabulary. See TextStream for whole texts.
  std::string decode(int64_t id) const;

  const TokenDecoder::Strip& strip() const { return decoder_.strip(); }

 private:
  void read_added_tokens(const nlohmann::json& added_tokens);
  void read_post_processor(const nlohmann::json& config);

  Bpe bpe_;
  Normalizer normalizer_;
  PreTokenizer pre_tokenizer_;
  TokenDecoder decoder_;
  TokenFinder added_;                                    // found in a text as it is given
  TokenFinder added_normalized_;                         // found in normalized text
  std::unordered_map<int64_t, std::string> added_text_;  // empty for special tokens
  std::vector<int64_t> prefix_;                          // ids before every text
  std::vector<int64_t> suffix_;                          // ids after every text
};

// Reads the text of a tokenizer.json; every error is a UserError.
Tokenizer parse_tokenizer(const std::string& json_text);
