#include "options.h"

#include <CLI/CLI.hpp>
#include <cmath>
#include <fstream>
#include <iostream>
#include <iterator>

#include "error.h"

namespace {

constexpr const char* kStandardInput = "-";

std::string read_file(const std::string& path) {
  if (path == kStandardInput) {
    return {std::istreambuf_iterator<char>(std::cin), {}};
  }
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string check_readable(const std::string& path) {
  return path == kStandardInput ? std::string() : CLI::ExistingFile(path);
}

// CLI11's own checks print the bounds of a range with hundreds of digits.
template <typename Number>
CLI::Validator number(const std::string& expectation, bool (*accepts)(Number)) {
  const auto check = [=](const std::string& text) {
    Number value{};
    const bool accepted = CLI::detail::lexical_cast(text, value) && accepts(value);
    return accepted ? std::string() : "expected " + expectation + ", got " + text;
  };
  return {check, expectation};
}

}  // namespace

std::optional<Options> parse_options(int argc, char** argv) {
  const auto from_0 = number<int64_t>("a whole number from 0", [](int64_t x) { return x >= 0; });
  const auto from_1 = number<int32_t>("a whole number from 1", [](int32_t x) { return x >= 1; });
  const auto threads =
      number<int>("a whole number from 1 to 1024", [](int x) { return x >= 1 && x <= 1024; });
  const auto temperature =
      number<double>("a finite number from 0", [](double x) { return x >= 0 && std::isfinite(x); });
  const auto share = number<double>("a number in (0, 1]", [](double x) { return x > 0 && x <= 1; });

  Options options;
  std::string prompt_file;
  CLI::App app("Continues a prompt with a model exported by mqa.export_torchscript or export_aoti.",
               "generate");
  app.set_version_flag("--version", MQA_VERSION);
  app.add_option("--model", options.model, "The exported model")
      ->required()
      ->check(CLI::ExistingFile);

  CLI::App& prompt = *app.add_option_group("Prompt", "Exactly one of these:");
  prompt.require_option(1);
  prompt.add_option("--prompt", options.prompt, "The text to continue");
  prompt
      .add_option("--prompt-file", prompt_file, "A file with the text to continue; - reads stdin")
      ->check(check_readable);
  auto* const tokens =
      prompt.add_option("--tokens", options.tokens, "Token ids to continue, such as 1,2,3")
          ->delimiter(',')
          ->check(from_0);
  app.add_flag("--chat", options.chat, "The prompt is a message to a chat model, which answers it")
      ->excludes(tokens);

  app.add_option("--max-new-tokens", options.max_new_tokens, "When to stop at the latest")
      ->check(from_1)
      ->capture_default_str();
  app.add_option("--temperature", options.sampler.temperature, "0 takes the likeliest token")
      ->check(temperature)
      ->capture_default_str();
  app.add_option("--top-k", options.sampler.top_k, "Sample among that many likeliest tokens")
      ->check(from_1);
  app.add_option("--top-p", options.sampler.top_p,
                 "Sample among the fewest likeliest tokens that have this probability together")
      ->check(share);
  app.add_option("--seed", options.sampler.seed, "Of the random numbers")
      ->check(from_0)
      ->capture_default_str();
  app.add_option("--kv-heads", options.kv_heads,
                 "Convert the model to that many KV heads (means of its own, or repetitions)")
      ->check(from_1);
  app.add_option("--capacity", options.capacity, "Slots of the cache; by default as many as needed")
      ->check(from_1);
  app.add_option("--cache-dtype", options.cache_dtype,
                 "Elements of the cache; auto: as the weights")
      ->check(CLI::IsMember({"auto", "int8", "float8_e4m3fn"}))
      ->capture_default_str();
  app.add_option("--threads", options.threads, "Threads to compute with")->check(threads);
  app.add_flag("--ignore-eos", options.ignore_eos, "Go on after an end-of-text token");
  app.add_flag("--json", options.json, "Print one JSON object at the end instead of the text");

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) {
      app.exit(error);  // prints what --help or --version asks for
      return std::nullopt;
    }
    throw UserError(error.what());
  }
  if (!prompt_file.empty()) {
    options.prompt = read_file(prompt_file);
  }
  return options;
}
