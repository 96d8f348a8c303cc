// Memory that the drivers' threads work in.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace mqa::kernels::cpu {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A growing, cache-line-aligned buffer; threads keep one from call to call.
class Buffer {
 public:
  char* reserve(int64_t bytes) {
    if (bytes > capacity_) {
      memory_.reset();  // never hold both
      memory_.reset(static_cast<char*>(std::aligned_alloc(kCacheLine, cache_lines(bytes))));
      capacity_ = memory_ ? bytes : 0;
      if (!memory_) throw std::bad_alloc();
    }
    return memory_.get();
  }

  static constexpr int64_t kCacheLine = 64;
  static constexpr int64_t cache_lines(int64_t bytes) {
    return ceil_div(bytes, kCacheLine) * kCacheLine;
  }

 private:
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  std::unique_ptr<char, Free> memory_;
  int64_t capacity_ = 0;
};

}  // namespace mqa::kernels::cpu
