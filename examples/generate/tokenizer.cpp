#include "tokenizer.h"

#include <algorithm>

#include "error.h"
#include "utf8.h"

namespace {

void append(std::vector<int64_t>& ids, const std::vector<int64_t>& more) {
  ids.insert(ids.end(), more.begin(), more.end());
}

}  // namespace

Tokenizer::Tokenizer(const nlohmann::json& config)
    : bpe_(config.at("model")), pre_tokenizer_(config.at("pre_tokenizer")) {
  if (!config.at("normalizer").is_null()) {
    throw UserError("expected a tokenizer without a normalizer, got " +
                    config.at("normalizer").dump());
  }
  const nlohmann::json& decoder = config.at("decoder");
  if (decoder.is_null() || decoder.at("type") != "ByteLevel") {
    throw UserError("expected a tokenizer with a ByteLevel decoder, got " + decoder.dump());
  }
  read_added_tokens(config.at("added_tokens"));
  read_post_processor(config.at("post_processor"));
}

void Tokenizer::read_added_tokens(const nlohmann::json& added_tokens) {
  std::vector<std::string> contents;
  for (const nlohmann::json& token : added_tokens) {
    for (const char* option : {"single_word", "lstrip", "rstrip"}) {
      if (token.value(option, false)) {
        throw UserError(std::string("expected added tokens of the tokenizer without ") + option +
                        ", got " + token.dump());
      }
    }
    const auto content = token.at("content").get<std::string>();
    const auto id = token.at("id").get<int64_t>();
    contents.push_back(content);
    added_ids_[content] = id;
    added_text_[id] = token.at("special") ? std::string() : content;
  }
  if (contents.empty()) {
    return;
  }
  // Of two tokens that begin at the same place, the longer one is meant.
  std::ranges::stable_sort(contents, std::greater<>(), &std::string::size);
  std::string pattern;
  for (const std::string& content : contents) {
    if (!pattern.empty()) {
      pattern += '|';
    }
    pattern += regex_escape(content);
  }
  added_regex_.emplace(pattern);
}

// Only a template adds tokens to a single text.
void Tokenizer::read_post_processor(const nlohmann::json& config) {
  if (config.is_null()) {
    return;
  }
  const auto type = config.at("type").get<std::string>();
  if (type == "Sequence") {
    for (const nlohmann::json& processor : config.at("processors")) {
      read_post_processor(processor);
    }
  } else if (type == "TemplateProcessing") {
    std::vector<int64_t>* ids = &prefix_;
    for (const nlohmann::json& item : config.at("single")) {
      if (item.contains("Sequence")) {
        ids = &suffix_;
      } else {
        const auto name = item.at("SpecialToken").at("id").get<std::string>();
        append(*ids, config.at("special_tokens").at(name).at("ids").get<std::vector<int64_t>>());
      }
    }
  } else if (type != "ByteLevel") {
    throw UserError(
        "expected a post_processor of type ByteLevel, TemplateProcessing or a Sequence of them, "
        "got " +
        type);
  }
}

std::vector<int64_t> Tokenizer::encode(std::string_view text) const {
  if (!is_utf8(text)) {
    throw UserError("expected the text to be valid UTF-8");
  }
  std::vector<int64_t> ids = prefix_;
  const auto pieces = added_regex_ ? added_regex_->split(text) : std::vector{text};
  for (const std::string_view piece : pieces) {
    if (const auto added = added_ids_.find(piece); added != added_ids_.end()) {
      ids.push_back(added->second);
      continue;
    }
    for (const std::string& word : pre_tokenizer_.split(piece)) {
      append(ids, bpe_.encode(word));
    }
  }
  append(ids, suffix_);
  return ids;
}

std::string Tokenizer::decode(int64_t id) const {
  const auto added = added_text_.find(id);
  return added == added_text_.end() ? bpe_.decode(id) : added->second;
}

Tokenizer parse_tokenizer(const std::string& json_text) {
  try {
    return Tokenizer(nlohmann::json::parse(json_text));
  } catch (const nlohmann::json::exception& error) {
    throw UserError(std::string("cannot read the tokenizer: ") + error.what());
  }
}
