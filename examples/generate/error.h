#pragma once

#include <stdexcept>

// What the user can put right: main() prints its one sentence and exits with code 2.
struct UserError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
