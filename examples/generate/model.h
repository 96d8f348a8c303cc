#pragma once

#include <torch/csrc/jit/api/module.h>

#include <cstdint>
#include <exception>
#include <string>
#include <vector>

// A decoder exported by mqa.export_torchscript, run for one sequence at a time.
class Model {
 public:
  using Cache = c10::List<at::Tensor>;  // [key_0, value_0, key_1, ...], each [1, H_kv, S, D]

  // Throws UserError if the file is not such a model.
  explicit Model(const std::string& path);

  // A cache of `capacity` slots.
  Cache new_cache(int64_t capacity);

  // Puts the tokens into the slots from 0 on. Returns the logits [vocab_size] after the last one.
  at::Tensor prefill(const std::vector<int64_t>& tokens, const Cache& cache);

  // Puts one token into slot `position`. Returns the logits [vocab_size] after it.
  at::Tensor decode(int64_t token, int64_t position, const Cache& cache);

  int64_t vocab_size() const { return vocab_size_; }
  int64_t max_position() const { return max_position_; }
  bool ends_text(int64_t token) const;
  const std::string& tokenizer_json() const { return tokenizer_json_; }  // empty if there is none

 private:
  void read_config(const std::string& json_text);

  torch::jit::Module module_;
  int64_t vocab_size_ = 0;
  int64_t max_position_ = 0;
  std::vector<int64_t> eos_token_ids_;
  std::string tokenizer_json_;
};

// What an exception of LibTorch says, without the backtraces of C++ and TorchScript.
std::string one_sentence(const std::exception& error);
