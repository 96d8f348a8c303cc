#include "byte_alphabet.h"

#include <array>
#include <cstdint>
#include <map>

#include "utf8.h"

namespace {

std::string utf8_of(uint32_t code_point) {  // below U+0800
  if (code_point < 0x80) {
    return {static_cast<char>(code_point)};
  }
  return {static_cast<char>(0xC0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 0x3F))};
}

// Printable Latin-1 characters stand for their own byte, and the characters from U+0100 on for the
// other bytes in order.
std::array<std::string, 256> make_letters() {
  std::array<std::string, 256> letters;
  uint32_t next_unprintable = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
    letters[byte] = utf8_of(printable ? byte : next_unprintable++);
  }
  return letters;
}

const std::array<std::string, 256>& letters() {
  static const auto letters = make_letters();
  return letters;
}

std::map<std::string_view, char> make_bytes() {
  std::map<std::string_view, char> bytes;
  for (size_t byte = 0; byte < 256; ++byte) {
    bytes[letters()[byte]] = static_cast<char>(byte);
  }
  return bytes;
}

}  // namespace

std::string spell_bytes(std::string_view bytes) {
  std::string token;
  for (const char byte : bytes) {
    token += letters()[static_cast<uint8_t>(byte)];
  }
  return token;
}

std::optional<std::string> spelled_bytes(std::string_view token) {
  static const auto bytes = make_bytes();
  std::string spelled;
  for (const std::string_view character : characters(token)) {
    const auto letter = bytes.find(character);
    if (letter == bytes.end()) {
      return std::nullopt;
    }
    spelled += letter->second;
  }
  return spelled;
}
