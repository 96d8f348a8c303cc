// Loads an exported decoder, continues a prompt and streams the text to the terminal.

#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include <chrono>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>

#include "error.h"
#include "interrupt.h"
#include "model.h"
#include "options.h"
#include "sampler.h"
#include "text_stream.h"
#include "tokenizer.h"

namespace {

constexpr int kInterruptedExitCode = 130;  // 128 + SIGINT, as shells have it

struct Generation {
  std::vector<int64_t> prompt;
  std::vector<int64_t> tokens;  // the new ones, without an end-of-text token
  std::string text;
  double prefill_seconds = 0;
  double decode_seconds = 0;
  int64_t decode_steps = 0;
  int64_t cache_bytes = 0;

  double prefill_rate() const { return static_cast<double>(prompt.size()) / prefill_seconds; }
  double decode_rate() const { return decode_steps ? decode_steps / decode_seconds : 0; }
};

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

std::optional<Tokenizer> load_tokenizer(const Model& model) {
  if (model.tokenizer_json().empty()) {
    return std::nullopt;
  }
  return parse_tokenizer(model.tokenizer_json());
}

std::vector<int64_t> encode_prompt(const Options& options, const Model& model,
                                   const std::optional<Tokenizer>& tokenizer) {
  if (!options.prompt) {
    return options.tokens;
  }
  if (!tokenizer) {
    throw UserError("the model has no tokenizer: give the prompt as --tokens");
  }
  if (!options.chat) {
    return tokenizer->encode(*options.prompt);
  }
  if (!model.chat()) {
    throw UserError("the model has no chat template: leave out --chat, or export it with one");
  }
  // The template has all that stands around the text.
  return tokenizer->encode_bare(model.chat()->before + *options.prompt + model.chat()->after);
}

std::vector<int64_t> prompt_tokens(const Options& options, const Model& model,
                                   const std::optional<Tokenizer>& tokenizer) {
  const auto tokens = encode_prompt(options, model, tokenizer);
  if (tokens.empty()) {
    throw UserError("expected a prompt of at least one token, got an empty one");
  }
  for (const int64_t token : tokens) {
    if (token < 0 || token >= model.vocab_size()) {
      throw UserError("expected tokens in [0, " + std::to_string(model.vocab_size()) + "), got " +
                      std::to_string(token));
    }
  }
  return tokens;
}

// The last new token is printed without having been in the cache.
int64_t cache_capacity(const Options& options, const Model& model, size_t prompt_length) {
  const int64_t needed = static_cast<int64_t>(prompt_length) + options.max_new_tokens - 1;
  const int64_t capacity = options.capacity.value_or(needed);
  const std::string reason = " for prompt (" + std::to_string(prompt_length) +
                             ") and new tokens (" + std::to_string(options.max_new_tokens) + ")";
  if (needed > capacity) {
    throw UserError("expected a --capacity of at least " + std::to_string(needed) + reason +
                    ", got " + std::to_string(capacity));
  }
  if (capacity > model.max_position()) {
    throw UserError("expected a cache of at most " + std::to_string(model.max_position()) +
                    " slots, the model's max_position, got " + std::to_string(capacity) + reason);
  }
  return capacity;
}

Generation generate(Model& model, const std::optional<Tokenizer>& tokenizer,
                    const Options& options) {
  Generation result;
  result.prompt = prompt_tokens(options, model, tokenizer);
  const Model::Cache cache =
      model.new_cache(cache_capacity(options, model, result.prompt.size()), options.cache_dtype);
  for (const at::Tensor& tensor : cache) {
    result.cache_bytes += static_cast<int64_t>(tensor.nbytes());
  }

  std::optional<TextStream> stream;
  if (tokenizer) {
    stream.emplace(*tokenizer);
  }
  const auto emit = [&](const std::string& text) {
    result.text += text;
    if (!options.json) {
      std::cout << text << std::flush;
    }
  };

  catch_interrupt();
  const Stopwatch prefill;
  at::Tensor logits = model.prefill(result.prompt, cache);
  result.prefill_seconds = prefill.seconds();
  auto position = static_cast<int64_t>(result.prompt.size());
  Sampler sampler(options.sampler);
  while (!interrupted()) {
    const int64_t token = sampler.choose(logits);
    if (model.ends_text(token) && !options.ignore_eos) {
      break;
    }
    result.tokens.push_back(token);
    emit(stream ? stream->push(token) : std::to_string(token) + ' ');
    if (std::ssize(result.tokens) == options.max_new_tokens) {
      break;
    }
    const Stopwatch decode;
    logits = model.decode(token, position++, cache);
    result.decode_seconds += decode.seconds();
    ++result.decode_steps;
  }
  if (stream) {
    emit(stream->finish());
  }
  return result;
}

void print_json(const Generation& result) {
  std::cout << nlohmann::ordered_json{{"prompt_tokens", result.prompt},
                                      {"tokens", result.tokens},
                                      {"text", result.text},
                                      {"prefill_seconds", result.prefill_seconds},
                                      {"decode_seconds", result.decode_seconds},
                                      {"prefill_tokens_per_second", result.prefill_rate()},
                                      {"decode_tokens_per_second", result.decode_rate()},
                                      {"cache_bytes", result.cache_bytes},
                                      {"threads", at::get_num_threads()}}
            << '\n';
}

void print_summary(const Generation& result) {
  std::cout << std::endl;
  std::cerr << "prefill: " << result.prompt.size() << " tokens, " << result.prefill_rate()
            << " tokens/s; decode: " << result.decode_steps << " steps, " << result.decode_rate()
            << " tokens/s; cache: " << result.cache_bytes << " bytes\n";
}

void run(const Options& options) {
  if (options.threads) {
    at::set_num_threads(*options.threads);
  }
  const c10::InferenceMode no_gradients;
  const auto model = load_model(options.model);
  if (options.kv_heads) {
    model->convert_kv_heads(*options.kv_heads);
  }
  const Generation result = generate(*model, load_tokenizer(*model), options);
  if (options.json) {
    print_json(result);
  } else {
    print_summary(result);
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (const auto options = parse_options(argc, argv)) {
      run(*options);
      return interrupted() ? kInterruptedExitCode : 0;
    }
  } catch (const UserError& error) {
    std::cerr << "generate: " << error.what() << '\n';
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "generate: " << one_sentence(error) << '\n';
    return 2;
  }
}
