#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <exception>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

// A decoder exported from Python, run for one sequence at a time.
class Model {
 public:
  using Cache = std::vector<at::Tensor>;  // [key_0, value_0, key_1, ...], each [1, H_kv, S, D]

  virtual ~Model() = default;

  // A cache of `capacity` slots.
  virtual Cache new_cache(int64_t capacity) = 0;

  // Puts the tokens into the slots from 0 on. Returns the logits [vocab_size] after the last one.
  virtual at::Tensor prefill(const std::vector<int64_t>& tokens, const Cache& cache) = 0;

  // Puts one token into slot `position`. Returns the logits [vocab_size] after it.
  virtual at::Tensor decode(int64_t token, int64_t position, const Cache& cache) = 0;

  int64_t vocab_size() const { return vocab_size_; }
  int64_t max_position() const { return max_position_; }
  bool ends_text(int64_t token) const;
  const std::string& tokenizer_json() const { return tokenizer_json_; }  // empty if there is none

 protected:
  void read_config(const nlohmann::json& config);

  std::string tokenizer_json_;

 private:
  int64_t vocab_size_ = 0;
  int64_t max_position_ = 0;
  std::vector<int64_t> eos_token_ids_;
};

// Loads what mqa.export_aoti wrote if the name ends in .pt2, else what mqa.export_torchscript
// wrote. Throws UserError if the file is not such a model.
std::unique_ptr<Model> load_model(const std::string& path);

// What an exception of LibTorch says, without the backtraces of C++ and TorchScript.
std::string one_sentence(const std::exception& error);
