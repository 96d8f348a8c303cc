// For tests of the emulation: one block of 64 threads, and the error that it ends with.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "kernels/cuda/device.cuh"

namespace mqa::kernels::cuda {

// The message of the error, or "" if there was none.
template <class Kernel>
std::string run(const Kernel& kernel, bool detect_races = false) {
  emulation::set_options({.detect_races = detect_races});
  std::string error;
  try {
    emulation::launch(/*blocks=*/1, /*threads=*/64, /*smem_bytes=*/1024, kernel);
  } catch (const emulation::Error& e) {
    error = e.what();
  }
  emulation::set_options({});
  return error;
}

template <class Kernel>
std::string races(const Kernel& kernel) {
  return run(kernel, /*detect_races=*/true);
}

inline testing::AssertionResult has(const std::string& message, const std::string& part) {
  if (message.find(part) != std::string::npos) return testing::AssertionSuccess();
  return testing::AssertionFailure() << '"' << message << "\" has no \"" << part << '"';
}

}  // namespace mqa::kernels::cuda
