#include "tokenizer.h"

#include "error.h"
#include "utf8.h"

namespace {

void append(std::vector<int64_t>& ids, const std::vector<int64_t>& more) {
  ids.insert(ids.end(), more.begin(), more.end());
}

}  // namespace

Tokenizer::Tokenizer(const nlohmann::json& config)
    : bpe_(config.at("model")),
      normalizer_(config.at("normalizer")),
      pre_tokenizer_(config.at("pre_tokenizer")),
      decoder_(config.at("decoder")) {
  read_added_tokens(config.at("added_tokens"));
  read_post_processor(config.at("post_processor"));
}

void Tokenizer::read_added_tokens(const nlohmann::json& added_tokens) {
  for (const nlohmann::json& token : added_tokens) {
    for (const char* option : {"single_word", "lstrip", "rstrip"}) {
      if (token.value(option, false)) {
        throw UserError(std::string("expected added tokens of the tokenizer without ") + option +
                        ", got " + token.dump());
      }
    }
    const bool normalized = token.at("normalized");
    const auto content = token.at("content").get<std::string>();
    const std::string spelling = normalized ? normalizer_(content) : content;
    const auto id = token.at("id").get<int64_t>();
    (normalized ? added_normalized_ : added_).add(spelling, id);
    added_text_[id] = token.at("special") ? std::string() : spelling;
  }
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
  std::vector<int64_t> ids = prefix_;
  append(ids, encode_bare(text));
  append(ids, suffix_);
  return ids;
}

std::vector<int64_t> Tokenizer::encode_bare(std::string_view text) const {
  if (!is_utf8(text)) {
    throw UserError("expected the text to be valid UTF-8");
  }
  std::vector<int64_t> ids;
  for (const auto& [raw, added_id] : added_.split(text)) {
    if (added_id) {
      ids.push_back(*added_id);
      continue;
    }
    bool begins_text = raw.data() == text.data();
    const std::string normalized = normalizer_(std::string(raw));
    for (const auto& [piece, normalized_id] : added_normalized_.split(normalized)) {
      if (normalized_id) {
        ids.push_back(*normalized_id);
      } else {
        for (const std::string& word : pre_tokenizer_.split(piece, begins_text)) {
          append(ids, bpe_.encode(word));
        }
      }
      begins_text = false;
    }
  }
  return ids;
}

std::string Tokenizer::decode(int64_t id) const {
  const auto added = added_text_.find(id);
  return decoder_(added == added_text_.end() ? bpe_.token(id) : added->second);
}

Tokenizer parse_tokenizer(const std::string& json_text) {
  try {
    return Tokenizer(nlohmann::json::parse(json_text));
  } catch (const nlohmann::json::exception& error) {
    throw UserError(std::string("cannot read the tokenizer: ") + error.what());
  }
}
