#include "bpe.h"

#include <functional>
#include <queue>

#include "error.h"

namespace {

constexpr int64_t kNone = -1;

std::string utf8_of(uint32_t code_point) {  // below U+0800
  if (code_point < 0x80) {
    return {static_cast<char>(code_point)};
  }
  return {static_cast<char>(0xC0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 0x3F))};
}

// GPT-2's alphabet, in which a vocabulary spells bytes: printable Latin-1 characters stand for
// their own byte, and the characters from U+0100 on for the other bytes in order.
std::unordered_map<std::string, uint8_t> make_alphabet() {
  std::unordered_map<std::string, uint8_t> alphabet;
  uint32_t next_unprintable = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
    alphabet[utf8_of(printable ? byte : next_unprintable++)] = static_cast<uint8_t>(byte);
  }
  return alphabet;
}

// The bytes that `token` spells, if all its characters are letters of the alphabet.
std::optional<std::string> spelled_bytes(const std::string& token) {
  static const auto alphabet = make_alphabet();
  std::string bytes;
  for (size_t i = 0; i < token.size();) {
    const size_t length = static_cast<uint8_t>(token[i]) < 0x80 ? 1 : 2;
    const auto letter = alphabet.find(token.substr(i, length));
    if (letter == alphabet.end()) {
      return std::nullopt;
    }
    bytes += static_cast<char>(letter->second);
    i += length;
  }
  return bytes;
}

// Older files write a merge as "left right", newer ones as ["left", "right"].
std::pair<std::string, std::string> merge_parts(const nlohmann::json& merge) {
  if (merge.is_array()) {
    return merge.get<std::pair<std::string, std::string>>();
  }
  const auto text = merge.get<std::string>();
  const size_t space = text.find(' ');
  if (space == std::string::npos) {
    throw UserError("expected each merge of the tokenizer to be two tokens, got " + merge.dump());
  }
  return {text.substr(0, space), text.substr(space + 1)};
}

int64_t id_of(const std::unordered_map<std::string, int64_t>& vocabulary,
              const std::string& token) {
  const auto entry = vocabulary.find(token);
  if (entry == vocabulary.end()) {
    throw UserError("expected the tokenizer's vocabulary to have \"" + token +
                    "\", which a merge or the unknown token names");
  }
  return entry->second;
}

void check_options(const nlohmann::json& model) {
  if (model.at("type") != "BPE") {
    throw UserError("expected a tokenizer model of type \"BPE\", got " + model.at("type").dump());
  }
  for (const char* option : {"dropout", "continuing_subword_prefix", "end_of_word_suffix",
                             "fuse_unk", "byte_fallback"}) {
    const nlohmann::json value = model.value(option, nlohmann::json());
    if (!value.is_null() && value != "" && value != 0.0 && value != false) {
      throw UserError(std::string("expected a byte-level BPE tokenizer without ") + option +
                      ", got " + value.dump());
    }
  }
}

}  // namespace

Bpe::Bpe(const nlohmann::json& model) {
  check_options(model);
  ignore_merges_ = model.value("ignore_merges", false);

  const auto vocabulary = model.at("vocab").get<std::unordered_map<std::string, int64_t>>();
  for (const auto& [token, id] : vocabulary) {
    const auto bytes = spelled_bytes(token);
    tokens_[id] = bytes.value_or(token);
    if (bytes) {
      ids_[*bytes] = id;
    }
    if (bytes && bytes->size() == 1) {
      byte_ids_[static_cast<uint8_t>(bytes->front())] = id;
    }
  }

  int64_t rank = 0;
  for (const auto& merge : model.at("merges")) {
    const auto [left, right] = merge_parts(merge);
    merges_[{id_of(vocabulary, left), id_of(vocabulary, right)}] = {
        rank++, id_of(vocabulary, left + right)};
  }

  const nlohmann::json unknown = model.value("unk_token", nlohmann::json());
  if (!unknown.is_null()) {
    unknown_id_ = id_of(vocabulary, unknown.get<std::string>());
  }
}

std::vector<Bpe::Symbol> Bpe::symbols_of(std::string_view word) const {
  std::vector<Symbol> symbols;
  for (const char byte : word) {
    const auto& known_id = byte_ids_[static_cast<uint8_t>(byte)];
    if (const auto id = known_id ? known_id : unknown_id_) {
      const auto index = static_cast<int64_t>(symbols.size());
      symbols.push_back({*id, index - 1, index + 1});
    }
  }
  if (!symbols.empty()) {
    symbols.back().next = kNone;
  }
  return symbols;
}

// The merge of the symbol at `left` with the one after it.
const Bpe::Merge* Bpe::find_merge(const std::vector<Symbol>& symbols, int64_t left) const {
  const int64_t right = symbols[left].next;
  if (right == kNone) {
    return nullptr;
  }
  const auto merge = merges_.find({symbols[left].id, symbols[right].id});
  return merge == merges_.end() ? nullptr : &merge->second;
}

std::vector<int64_t> Bpe::encode(std::string_view word) const {
  if (ignore_merges_) {
    if (const auto whole = ids_.find(std::string(word)); whole != ids_.end()) {
      return {whole->second};
    }
  }

  // A linked list of symbols and a queue of (rank, left symbol): the best merge is found in
  // logarithmic time, so that a word of a million letters is no trap.
  std::vector<Symbol> symbols = symbols_of(word);
  using Candidate = std::pair<int64_t, int64_t>;
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto enqueue = [&](int64_t left) {
    if (const Merge* merge = find_merge(symbols, left)) {
      queue.emplace(merge->rank, left);
    }
  };
  for (size_t i = 0; i < symbols.size(); ++i) {
    enqueue(static_cast<int64_t>(i));
  }
  while (!queue.empty()) {
    const auto [rank, left] = queue.top();
    queue.pop();
    const Merge* merge = find_merge(symbols, left);
    if (merge == nullptr || merge->rank != rank) {
      continue;  // one of the two has been merged with another neighbour since
    }
    Symbol& merged = symbols[left];
    Symbol& absorbed = symbols[merged.next];
    merged.id = merge->id;
    merged.next = absorbed.next;
    absorbed.next = kNone;  // no candidate any more
    if (merged.next != kNone) {
      symbols[merged.next].previous = left;
    }
    if (merged.previous != kNone) {
      enqueue(merged.previous);
    }
    enqueue(left);
  }

  std::vector<int64_t> ids;
  for (int64_t i = symbols.empty() ? kNone : 0; i != kNone; i = symbols[i].next) {
    ids.push_back(symbols[i].id);
  }
  return ids;
}

std::string Bpe::decode(int64_t id) const {
  const auto token = tokens_.find(id);
  return token == tokens_.end() ? std::string() : token->second;
}
