// An attention problem laid out in memory, and what the kernel makes of it.
#pragma once

#include <functional>
#include <iosfwd>
#include <memory>
#include <string>
#include <vector>

#include "attention_problem.h"
#include "kernels/params.h"

namespace mqa::kernels {

// How the slots of key and value lie. What is between and behind them is filled with garbage.
struct Layout {
  enum class Order {
    kHeadsFirst,  // [B, H_kv, S, D]
    kSlotsFirst,  // [B, S, H_kv, D]
    kGaps,        // the same in rows of D + 3, as a slice of a wider tensor has it
    kLayers,      // [B, S, layers, H_kv, D]: the caches of all layers in one allocation
  } order = Order::kHeadsFirst;
  int64_t page_size = 0;    // 0: not paged. Otherwise pages for B, in a shuffled pool with others
  int64_t spare_slots = 0;  // capacity beyond S, not paged
  double fill = 0;          // for float caches: put into unused slots instead of garbage, if not 0
  bool is_aligned = true;   // query and caches start at multiples of 16 bytes
  bool is_packed = false;   // keys; pages are multiples of 16 slots, others get as many
};
std::ostream& operator<<(std::ostream& out, const Layout& layout);

// The bits of out and lse.
struct Result {
  Numbers out, lse;

  std::string bits(int64_t row) const;  // of one row of both
};

// Ranges as some thread pool might hand them out: of odd sizes, the last one first.
Threads scrambled(int64_t threads);
// Two threads at a time.
Threads concurrent();

// The kernel: each library of kernels that is tested has its own.
void run(const AttentionParams& params, const Threads& threads);

Result attend(const Problem& problem, const Layout& layout = {}, const Threads& threads = {});

struct OutGrads {
  Numbers out, lse;  // as the results
};

struct Gradients {
  Numbers query, key, value;  // [B, H_q, T, D], [B, H_kv, slots, D], [B, H_kv, slots, D_v]
  Numbers mask;               // as the problem's, with a column for each slot
  Numbers row_sums;           // [B, H_q, T]
  int64_t slots;
};

// Of params.workspace it takes care itself.
void run_backward(BackwardParams& params, const Threads& threads);
bool has_backward(const Case& c);

// Gradients of attend(); of key and value where the cache holds floats.
Gradients differentiate(const Problem& problem, const OutGrads& grads, const Layout& layout = {},
                        const Threads& threads = {});

}  // namespace mqa::kernels
