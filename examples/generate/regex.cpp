#include "regex.h"

#include <array>
#include <cctype>

#include "error.h"

namespace {

std::string message_of(int error) {
  std::array<PCRE2_UCHAR, 256> buffer{};
  pcre2_get_error_message(error, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

}  // namespace

Regex::Regex(const std::string& pattern) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                            PCRE2_UTF | PCRE2_UCP, &error, &offset, nullptr));
  if (!code_) {
    throw UserError("cannot compile the regular expression \"" + pattern +
                    "\": " + message_of(error) + " at offset " + std::to_string(offset));
  }
}

std::vector<Regex::Piece> Regex::split(std::string_view text) const {
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> match(
      pcre2_match_data_create_from_pattern(code_.get(), nullptr), &pcre2_match_data_free);
  const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(match.get());

  std::vector<Piece> pieces;
  size_t begin = 0;
  while (begin < text.size()) {
    const int result =
        pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), begin,
                    PCRE2_NOTEMPTY | PCRE2_NO_UTF_CHECK, match.get(), nullptr);
    if (result == PCRE2_ERROR_NOMATCH) {
      break;
    }
    if (result < 0) {
      throw UserError("cannot match a regular expression of the tokenizer: " + message_of(result));
    }
    if (bounds[0] > begin) {
      pieces.push_back({text.substr(begin, bounds[0] - begin), false});
    }
    pieces.push_back({text.substr(bounds[0], bounds[1] - bounds[0]), true});
    begin = bounds[1];
  }
  if (begin < text.size()) {
    pieces.push_back({text.substr(begin), false});
  }
  return pieces;
}

std::string regex_escape(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    if (std::ispunct(static_cast<unsigned char>(c))) {
      escaped += '\\';
    }
    escaped += c;
  }
  return escaped;
}
