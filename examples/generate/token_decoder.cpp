#include "token_decoder.h"

#include <charconv>

#include "byte_alphabet.h"
#include "error.h"
#include "replace.h"

namespace {

// The byte that a token such as <0x0A> stands for; other tokens stay as they are.
std::string byte_fallback(const std::string& token) {
  if (token.size() != 6 || !token.starts_with("<0x") || !token.ends_with('>')) {
    return token;
  }
  uint8_t byte = 0;
  const char* const last = token.data() + 5;
  const auto [end, error] = std::from_chars(token.data() + 3, last, byte, 16);
  return error == std::errc() && end == last ? std::string(1, static_cast<char>(byte)) : token;
}

std::string byte_level(const std::string& token) { return spelled_bytes(token).value_or(token); }

}  // namespace

TokenDecoder::TokenDecoder(const nlohmann::json& config) {
  if (config.is_null()) {
    throw UserError("expected a tokenizer with a decoder, got null");
  }
  add_steps(config);
}

void TokenDecoder::add_steps(const nlohmann::json& config) {
  const auto type = config.at("type").get<std::string>();
  if (type == "Sequence") {
    for (const nlohmann::json& step : config.at("decoders")) {
      add_steps(step);
    }
  } else if (type == "Fuse") {
    fused_ = true;
  } else if (type == "Strip") {
    read_strip(config);
  } else if (fused_) {
    throw UserError("expected only Strip after Fuse in the decoder of the tokenizer, got " + type);
  } else if (type == "ByteFallback") {
    steps_.push_back(byte_fallback);
  } else if (type == "ByteLevel") {
    steps_.push_back(byte_level);
  } else if (type == "Replace") {
    steps_.push_back(Replace(config));
  } else {
    throw UserError(
        "expected a decoder of type ByteFallback, ByteLevel, Fuse, Replace, Strip or a Sequence of "
        "them, got " +
        type);
  }
}

void TokenDecoder::read_strip(const nlohmann::json& config) {
  if (!fused_ || strip_.count > 0 || config.at("stop") != 0) {
    throw UserError(
        "expected one Strip after Fuse in the decoder of the tokenizer, with stop 0, got " +
        config.dump());
  }
  strip_ = {config.at("content").get<std::string>(), config.at("start").get<size_t>()};
}

std::string TokenDecoder::operator()(std::string token) const {
  for (const auto& step : steps_) {
    token = step(token);
  }
  return token;
}
