#include "text_stream.h"

TextStream::TextStream(const Tokenizer& tokenizer)
    : tokenizer_(tokenizer), strip_(tokenizer.strip()) {}

std::string TextStream::push(int64_t id) {
  std::string text = utf8_.push(tokenizer_.decode(id));
  for (; strip_.count > 0 && text.starts_with(strip_.text); --strip_.count) {
    text.erase(0, strip_.text.size());
  }
  if (!text.empty()) {
    strip_.count = 0;  // the text has begun
  }
  return text;
}

std::string TextStream::finish() { return utf8_.finish(); }
