#pragma once

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

// A Unicode regular expression over UTF-8 text.
class Regex {
 public:
  // Throws UserError if `pattern` is not a regular expression.
  explicit Regex(const std::string& pattern);

  struct Piece {
    std::string_view text;
    bool is_match;
  };

  // Cuts `text`, which must be valid UTF-8, before and after every match. The pieces, matches and
  // what lies between them, follow each other without a gap; none is empty.
  std::vector<Piece> split(std::string_view text) const;

 private:
  struct Free {
    void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  };
  std::unique_ptr<pcre2_code, Free> code_;
};

// A pattern that matches exactly `text`.
std::string regex_escape(std::string_view text);
