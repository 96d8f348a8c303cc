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

// Byte-level byte-pair encoding: the "model" of a tokenizer.json.
class Bpe {
 public:
  // Throws UserError for another type of model and for options that byte-level BPE has no use for.
  explicit Bpe(const nlohmann::json& model);

  // The ids of one word of the pre-tokenizer, given as raw bytes. Bytes outside the vocabulary
  // become the unknown token, or nothing where the model has none.
  std::vector<int64_t> encode(std::string_view word) const;

  // The bytes that a token stands for; none for an id outside the vocabulary.
  std::string decode(int64_t id) const;

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

  std::vector<Symbol> symbols_of(std::string_view word) const;
  const Merge* find_merge(const std::vector<Symbol>& symbols, int64_t left) const;

  std::unordered_map<std::string, int64_t> ids_;     // bytes -> id
  std::unordered_map<int64_t, std::string> tokens_;  // id -> bytes
  std::array<std::optional<int64_t>, 256> byte_ids_;
  std::unordered_map<std::pair<int64_t, int64_t>, Merge, PairHash> merges_;
  std::optional<int64_t> unknown_id_;
  bool ignore_merges_;  // a word that is a token as a whole is not built up by merges
};
