#include "token_finder.h"

void TokenFinder::add(const std::string& token, int64_t id) {
  if (!token.empty()) {
    ids_[token] = id;
    lengths_[static_cast<uint8_t>(token.front())].insert(token.size());
  }
}

TokenFinder::Piece TokenFinder::first_token(std::string_view text) const {
  for (const size_t length : lengths_[static_cast<uint8_t>(text.front())]) {
    if (const auto token = ids_.find(text.substr(0, length)); token != ids_.end()) {
      return {text.substr(0, length), token->second};
    }
  }
  return {};
}

std::vector<TokenFinder::Piece> TokenFinder::split(std::string_view text) const {
  std::vector<Piece> pieces;
  size_t begin = 0;  // of what follows the last token
  for (size_t i = 0; i < text.size();) {
    const Piece token = first_token(text.substr(i));
    if (!token.id) {
      ++i;
      continue;
    }
    if (i > begin) {
      pieces.push_back({text.substr(begin, i - begin), std::nullopt});
    }
    pieces.push_back(token);
    begin = i += token.text.size();
  }
  if (begin < text.size()) {
    pieces.push_back({text.substr(begin), std::nullopt});
  }
  return pieces;
}
