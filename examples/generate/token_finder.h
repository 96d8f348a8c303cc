#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

// Finds tokens that stand in a text as they are. Of two that begin at the same place, the longer
// one is meant.
class TokenFinder {
 public:
  struct Piece {
    std::string_view text;
    std::optional<int64_t> id;  // of the token; none for what lies between tokens
  };

  void add(const std::string& token, int64_t id);

  // Cuts `text` before and after every token. The pieces follow each other without a gap; none is
  // empty.
  std::vector<Piece> split(std::string_view text) const;

 private:
  // The token at the beginning of `text`, or an empty piece.
  Piece first_token(std::string_view text) const;

  std::map<std::string, int64_t, std::less<>> ids_;
  // Of the tokens that begin with each byte.
  std::array<std::set<size_t, std::greater<>>, 256> lengths_;
};
