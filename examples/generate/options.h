#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "sampler.h"

struct Options {
  std::string model;
  std::optional<std::string> prompt;  // the text of --prompt or of the file of --prompt-file
  std::vector<int64_t> tokens;        // used where there is no prompt
  bool chat = false;                  // the prompt is a message in the model's chat template
  int64_t max_new_tokens = 128;
  SamplerOptions sampler;
  std::optional<int64_t> kv_heads;
  std::optional<int64_t> capacity;
  std::string cache_dtype = "auto";
  std::optional<int> threads;
  bool ignore_eos = false;
  bool json = false;
};

// Reads the command line. Returns nothing after --help or --version, whose answer it has printed;
// throws UserError for what cannot be run.
std::optional<Options> parse_options(int argc, char** argv);
