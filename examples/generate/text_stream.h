#pragma once

#include <cstdint>
#include <string>

#include "tokenizer.h"
#include "utf8.h"

// The text of one token after the other, in whole characters.
class TextStream {
 public:
  // `tokenizer` must outlive the stream.
  explicit TextStream(const Tokenizer& tokenizer);

  // Appends a token and returns the text that is complete by now.
  std::string push(int64_t id);

  // Ends the stream: U+FFFD if it ended within a character, otherwise nothing.
  std::string finish();

 private:
  const Tokenizer& tokenizer_;
  Utf8Stream utf8_;
  TokenDecoder::Strip strip_;  // what remains to be stripped
};
