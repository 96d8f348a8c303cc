#pragma once

#include <string>
#include <string_view>
#include <vector>

// Turns a stream of bytes, cut anywhere, into pieces of valid UTF-8. A token of a byte-level
// tokenizer may end in the middle of a character; bytes that can no longer become a character are
// replaced by U+FFFD.
class Utf8Stream {
 public:
  // Appends bytes and returns the characters that are complete by now.
  std::string push(std::string_view bytes);

  // Ends the stream: U+FFFD if it ended within a character, otherwise nothing.
  std::string finish();

 private:
  std::string pending_;
};

bool is_utf8(std::string_view text);

// The characters of `text`, which must be valid UTF-8.
std::vector<std::string_view> characters(std::string_view text);
