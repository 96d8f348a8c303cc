#include "bpe.h"

#include <functional>
#include <queue>

#include "error.h"
#include "utf8.h"

namespace {

constexpr int64_t kNone = -1;

// How a vocabulary with byte_fallback spells a byte, such as <0x0A>.
std::string byte_token(size_t byte) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  return {'<', '0', 'x', kDigits[byte / 16], kDigits[byte % 16], '>'};
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

void check_options(const nlohmann::json& model) {
  if (model.at("type") != "BPE") {
    throw UserError("expected a tokenizer model of type \"BPE\", got " + model.at("type").dump());
  }
  for (const char* option : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
    const nlohmann::json value = model.value(option, nlohmann::json());
    if (!value.is_null() && value != "" && value != 0.0 && value != false) {
      throw UserError(std::string("expected a BPE tokenizer without ") + option + ", got " +
                      value.dump());
    }
  }
}

}  // namespace

Bpe::Bpe(const nlohmann::json& model) {
  check_options(model);
  fuse_unknown_ = model.value("fuse_unk", false);
  ignore_merges_ = model.value("ignore_merges", false);
  const auto& vocabulary = model.at("vocab");
  ids_.reserve(vocabulary.size());
  tokens_.reserve(vocabulary.size());
  for (const auto& [token, id] : vocabulary.items()) {
    ids_[token] = id;
    tokens_[id] = token;
  }

  const auto& merges = model.at("merges");
  merges_.reserve(merges.size());
  int64_t rank = 0;
  for (const auto& merge : merges) {
    const auto [left, right] = merge_parts(merge);
    merges_[{id_of(left), id_of(right)}] = {rank++, id_of(left + right)};
  }

  if (model.value("byte_fallback", false)) {
    for (size_t byte = 0; byte < byte_ids_.size(); ++byte) {
      byte_ids_[byte] = find_id(byte_token(byte));
    }
  }
  const nlohmann::json unknown = model.value("unk_token", nlohmann::json());
  if (!unknown.is_null()) {
    unknown_id_ = id_of(unknown.get<std::string>());
  }
}

std::optional<int64_t> Bpe::find_id(const std::string& token) const {
  const auto entry = ids_.find(token);
  return entry == ids_.end() ? std::nullopt : std::optional(entry->second);
}

int64_t Bpe::id_of(const std::string& token) const {
  const auto id = find_id(token);
  if (!id) {
    throw UserError("expected the tokenizer's vocabulary to have \"" + token +
                    "\", which a merge or the unknown token names");
  }
  return *id;
}

// The tokens of the bytes of a character; none unless every byte has one.
std::vector<int64_t> Bpe::byte_ids(std::string_view character) const {
  std::vector<int64_t> ids;
  for (const char byte : character) {
    const auto& id = byte_ids_[static_cast<uint8_t>(byte)];
    if (!id) {
      return {};
    }
    ids.push_back(*id);
  }
  return ids;
}

// The tokens of a word's characters.
std::vector<int64_t> Bpe::unmerged(std::string_view word) const {
  std::vector<int64_t> ids;
  bool after_unknown = false;
  for (const std::string_view character : characters(word)) {
    const auto id = find_id(std::string(character));
    const auto known = id ? std::vector{*id} : byte_ids(character);
    ids.insert(ids.end(), known.begin(), known.end());
    if (known.empty() && unknown_id_ && !(after_unknown && fuse_unknown_)) {
      ids.push_back(*unknown_id_);
    }
    after_unknown = known.empty();
  }
  return ids;
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
    if (const auto whole = find_id(std::string(word))) {
      return {*whole};
    }
  }

  // A linked list of symbols and a queue of (rank, left symbol): the best merge is found in
  // logarithmic time, so that a word of a million letters is no trap.
  std::vector<Symbol> symbols;
  for (const int64_t id : unmerged(word)) {
    const auto index = static_cast<int64_t>(symbols.size());
    symbols.push_back({id, index - 1, index + 1});
  }
  if (symbols.empty()) {
    return {};
  }
  symbols.back().next = kNone;
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
  for (int64_t i = 0; i != kNone; i = symbols[i].next) {
    ids.push_back(symbols[i].id);
  }
  return ids;
}

std::string Bpe::token(int64_t id) const {
  const auto token = tokens_.find(id);
  return token == tokens_.end() ? std::string() : token->second;
}
