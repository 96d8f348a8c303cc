// Tokenizes without a model: reads one JSON string a line from standard input and answers each with
// one line {"ids": [...], "text": "..."}, where text is what the ids decode to.

#include <fstream>
#include <iostream>
#include <sstream>

#include "error.h"
#include "text_stream.h"
#include "tokenizer.h"

namespace {

Tokenizer load(const std::string& path) {
  std::ifstream file(path);
  if (!file) {
    throw UserError("cannot read " + path);
  }
  std::stringstream text;
  text << file.rdbuf();
  return parse_tokenizer(text.str());
}

std::string decode(const Tokenizer& tokenizer, const std::vector<int64_t>& ids) {
  TextStream stream(tokenizer);
  std::string text;
  for (const int64_t id : ids) {
    text += stream.push(id);
  }
  return text + stream.finish();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: tokenize tokenizer.json < lines\n";
    return 2;
  }
  try {
    const Tokenizer tokenizer = load(argv[1]);
    for (std::string line; std::getline(std::cin, line);) {
      const auto ids = tokenizer.encode(nlohmann::json::parse(line).get<std::string>());
      std::cout << nlohmann::json{{"ids", ids}, {"text", decode(tokenizer, ids)}} << std::endl;
    }
  } catch (const std::exception& error) {
    std::cerr << "tokenize: " << error.what() << '\n';
    return 2;
  }
}
