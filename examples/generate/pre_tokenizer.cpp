#include "pre_tokenizer.h"

#include <memory>
#include <optional>
#include <utility>

#include "byte_alphabet.h"
#include "error.h"
#include "regex.h"
#include "replace.h"

namespace {

using Words = std::vector<std::string>;

// GPT-2's words: contractions, then runs of letters, of digits or of other characters, each with
// the space before it, then white space.
constexpr const char* kByteLevelWords =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// Where the matches of a regular expression go.
enum class Matches { kIsolated, kMergedWithPrevious, kMergedWithNext };

Matches read_behavior(const nlohmann::json& config) {
  const nlohmann::json& behavior = config.at("behavior");
  if (config.value("invert", false)) {
    throw UserError("expected a pre_tokenizer Split without invert, got " + config.dump());
  }
  if (behavior == "Isolated") {
    return Matches::kIsolated;
  }
  if (behavior == "MergedWithPrevious") {
    return Matches::kMergedWithPrevious;
  }
  if (behavior == "MergedWithNext") {
    return Matches::kMergedWithNext;
  }
  throw UserError(
      "expected a pre_tokenizer Split of behavior Isolated, MergedWithPrevious or MergedWithNext, "
      "got " +
      behavior.dump());
}

std::string read_pattern(const nlohmann::json& pattern) {
  return pattern.contains("Regex") ? pattern.at("Regex").get<std::string>()
                                   : regex_escape(pattern.at("String").get<std::string>());
}

class Split {
 public:
  Split(const std::string& pattern, Matches matches)
      : regex_(std::make_shared<Regex>(pattern)), matches_(matches) {}

  Words operator()(const std::string& word, bool /*begins_text*/ = false) const {
    Words words;
    bool joins_next = false;  // a match that waits for what comes after it
    bool after_text = false;
    for (const auto& [piece, is_match] : regex_->split(word)) {
      const bool joins =
          is_match ? matches_ == Matches::kMergedWithPrevious && after_text : joins_next;
      if (joins) {
        words.back() += piece;
      } else {
        words.emplace_back(piece);
      }
      joins_next = is_match && matches_ == Matches::kMergedWithNext;
      after_text = !is_match;
    }
    return words;
  }

 private:
  std::shared_ptr<const Regex> regex_;  // shared by copies of this step
  Matches matches_;
};

class ByteLevel {
 public:
  explicit ByteLevel(const nlohmann::json& config)
      : add_prefix_space_(config.at("add_prefix_space").get<bool>()) {
    if (config.value("use_regex", true)) {
      words_.emplace(kByteLevelWords, Matches::kIsolated);
    }
  }

  Words operator()(const std::string& word, bool /*begins_text*/) const {
    const bool prepends = add_prefix_space_ && !word.starts_with(' ');
    const std::string spaced = prepends ? ' ' + word : word;
    Words words = words_ ? (*words_)(spaced) : Words{spaced};
    for (std::string& bytes : words) {
      bytes = spell_bytes(bytes);
    }
    return words;
  }

 private:
  bool add_prefix_space_;
  std::optional<Split> words_;
};

class Metaspace {
 public:
  explicit Metaspace(const nlohmann::json& config)
      : mark_(config.at("replacement").get<std::string>()),
        scheme_(config.at("prepend_scheme").get<std::string>()),
        replace_spaces_(" ", mark_) {
    if (config.at("split")) {
      words_.emplace(regex_escape(mark_), Matches::kMergedWithNext);
    }
  }

  Words operator()(const std::string& word, bool begins_text) const {
    std::string marked = replace_spaces_(word);
    const bool prepends = scheme_ == "always" || (scheme_ == "first" && begins_text);
    if (prepends && !marked.starts_with(mark_)) {
      marked.insert(0, mark_);
    }
    return words_ ? (*words_)(marked) : Words{marked};
  }

 private:
  std::string mark_;
  std::string scheme_;
  Replace replace_spaces_;
  std::optional<Split> words_;
};

}  // namespace

PreTokenizer::PreTokenizer(const nlohmann::json& config) {
  if (!config.is_null()) {
    add_steps(config);
  }
}

void PreTokenizer::add_steps(const nlohmann::json& config) {
  const auto type = config.at("type").get<std::string>();
  if (type == "Sequence") {
    for (const nlohmann::json& step : config.at("pretokenizers")) {
      add_steps(step);
    }
  } else if (type == "ByteLevel") {
    steps_.push_back(ByteLevel(config));
  } else if (type == "Digits") {
    steps_.push_back(
        Split(config.at("individual_digits") ? R"(\p{N})" : R"(\p{N}+)", Matches::kIsolated));
  } else if (type == "Metaspace") {
    steps_.push_back(Metaspace(config));
  } else if (type == "Split") {
    steps_.push_back(Split(read_pattern(config.at("pattern")), read_behavior(config)));
  } else {
    throw UserError(
        "expected a pre_tokenizer of type ByteLevel, Digits, Metaspace, Split or a Sequence of "
        "them, got " +
        type);
  }
}

std::vector<std::string> PreTokenizer::split(std::string_view text, bool begins_text) const {
  Words words{std::string(text)};
  for (const Step& step : steps_) {
    Words next_words;
    for (const std::string& word : words) {
      const bool begins = begins_text && next_words.empty();
      for (std::string& next_word : step(word, begins)) {
        next_words.push_back(std::move(next_word));
      }
    }
    words = std::move(next_words);
  }
  return words;
}
