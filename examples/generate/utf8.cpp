#include "utf8.h"

#include <cstdint>

namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

struct Sequence {
  size_t length;  // bytes it takes up
  enum { kValid, kInvalid, kIncomplete } state;
};

// The first sequence of `bytes` (not empty) by table 3-7 of the Unicode standard. An invalid one is
// as long as the bytes that could have begun a character.
Sequence first_sequence(std::string_view bytes) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) {
    return {1, Sequence::kValid};
  }
  if (lead < 0xC2 || lead > 0xF4) {
    return {1, Sequence::kInvalid};
  }
  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  for (size_t i = 1; i < length; ++i) {
    if (i == bytes.size()) {
      return {i, Sequence::kIncomplete};
    }
    // The second byte's range excludes overlong forms, surrogates and what lies beyond U+10FFFF.
    const bool second = i == 1;
    const uint8_t low = second && lead == 0xE0 ? 0xA0 : second && lead == 0xF0 ? 0x90 : 0x80;
    const uint8_t high = second && lead == 0xED ? 0x9F : second && lead == 0xF4 ? 0x8F : 0xBF;
    if (byte(i) < low || byte(i) > high) {
      return {i, Sequence::kInvalid};
    }
  }
  return {length, Sequence::kValid};
}

}  // namespace

std::string Utf8Stream::push(std::string_view bytes) {
  pending_ += bytes;
  std::string text;
  std::string_view rest = pending_;
  while (!rest.empty()) {
    const Sequence sequence = first_sequence(rest);
    if (sequence.state == Sequence::kIncomplete) {
      break;
    }
    text += sequence.state == Sequence::kValid ? rest.substr(0, sequence.length) : kReplacement;
    rest.remove_prefix(sequence.length);
  }
  pending_ = std::string(rest);
  return text;
}

std::string Utf8Stream::finish() {
  const bool cut_off = !pending_.empty();
  pending_.clear();
  return cut_off ? std::string(kReplacement) : std::string();
}

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const Sequence sequence = first_sequence(text);
    if (sequence.state != Sequence::kValid) {
      return false;
    }
    text.remove_prefix(sequence.length);
  }
  return true;
}

std::vector<std::string_view> characters(std::string_view text) {
  std::vector<std::string_view> result;
  while (!text.empty()) {
    const size_t length = first_sequence(text).length;
    result.push_back(text.substr(0, length));
    text.remove_prefix(length);
  }
  return result;
}
