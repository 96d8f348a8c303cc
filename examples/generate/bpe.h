#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

// Byte-pair encoding: the "model" of a tokenizer.json.
class Bpe {
 public:
  // Throws UserError for another type of model and for options that are not implemented.
  explicit Bpe(const nlohmann::json& model);

  // The ids of one word of the pre-tokenizer, which must be valid UTF-8. Characters outside the
  // vocabulary become tokens of their bytes, or the unknown token, or nothing, as the model has it.
  std::vector<int64_t> encode(std::string_view word) const;

  // How the vocabulary spells a token; empty for an id outside of it.
  std::string token(int64_t id) const;

 private:
  struct Merge {
    int64_t rank;  // lower ranks merge first
    int64_t id;    // of the merged token
  };
  struct Symbol {
    int64_t id;
    int64_t previous;
    int64_t next;
  };
  struct PairHash {
    size_t operator()(const std::pair<int64_t, int64_t>& ids) const {
      return std::hash<int64_t>()(ids.first << 32 ^ ids.second);
    }
  };

  int64_t id_of(const std::string& token) const;
  std::optional<int64_t> find_id(const std::string& token) const;
  std::vector<int64_t> byte_ids(std::string_view character) const;
  std::vector<int64_t> unmerged(std::string_view word) const;
  const Merge* find_merge(const std::vector<Symbol>& symbols, int64_t left) const;

  std::unordered_map<std::string, int64_t> ids_;
  std::unordered_map<int64_t, std::string> tokens_;
  std::unordered_map<std::pair<int64_t, int64_t>, Merge, PairHash> merges_;
  std::array<std::optional<int64_t>, 256> byte_ids_;  // with byte_fallback
  std::optional<int64_t> unknown_id_;
  bool fuse_unknown_;   // successive unknown characters are one token
  bool ignore_merges_;  // a word that is a token as a whole is not built up by merges
};
