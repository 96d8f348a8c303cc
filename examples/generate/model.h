#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <exception>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

// What a chat model expects before and after the user's message.
struct ChatFrame {
  std::string before;
  std::string after;
};

// A decoder exported from Python, run for one sequence at a time.
class Model {
 public:
  // [key_0, value_0, key_1, ...], each [1, H_kv, S, D]; then any scales.
  using Cache = std::vector<at::Tensor>;

  virtual ~Model() = default;

  // Changes the number of KV heads as mqa.convert does. Throws UserError if that cannot be done.
  virtual void convert_kv_heads(int64_t num_kv_heads) = 0;

  // A cache of `capacity` slots; the `dtype` "auto" is that of the weights. Throws UserError for a
  // dtype that the model's caches cannot have.
  virtual Cache new_cache(int64_t capacity, const std::string& dtype) = 0;

  // Puts the tokens into the slots from 0 on. Returns the logits [vocab_size] after the last one.
  virtual at::Tensor prefill(const std::vector<int64_t>& tokens, const Cache& cache) = 0;

  // Puts one token into slot `position`. Returns the logits [vocab_size] after it.
  virtual at::Tensor decode(int64_t token, int64_t position, const Cache& cache) = 0;

  int64_t vocab_size() const { return vocab_size_; }
  int64_t max_position() const { return max_position_; }
  bool ends_text(int64_t token) const;
  const std::string& tokenizer_json() const { return tokenizer_json_; }  // empty if there is none
  const std::optional<ChatFrame>& chat() const { return chat_; }

 protected:
  // Reads the files that travel along with the model, by name: config.json and, if there are any,
  // tokenizer.json and chat.json. Returns the configuration.
  nlohmann::json read_files(std::unordered_map<std::string, std::string> files);

  int64_t num_heads() const { return num_heads_; }

 private:
  std::string tokenizer_json_;
  std::optional<ChatFrame> chat_;
  int64_t num_heads_ = 0;
  int64_t vocab_size_ = 0;
  int64_t max_position_ = 0;
  std::vector<int64_t> eos_token_ids_;
};

// Loads what mqa.export_aoti wrote if the name ends in .pt2, else what mqa.export_torchscript
// wrote. Throws UserError if the file is not such a model.
std::unique_ptr<Model> load_model(const std::string& path);

// What an exception of LibTorch says, without the backtraces of C++ and TorchScript.
std::string one_sentence(const std::exception& error);
