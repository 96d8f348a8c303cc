// The threads of a block as fibers of one OS thread, and how they wait for each other. A warp's
// primitive waits for its 32 lanes and the last one does the work for all; lanes that meet in
// different primitives, or that never come, are an error that names both places. Nothing hangs.
#pragma once

#include <cstring>
#include <exception>
#include <random>
#include <string>
#include <vector>

#include "emulation.h"
#include "fiber.h"
#include "race_check.h"

namespace mqa::emulation {

inline constexpr uint32_t kFullWarp = ~0u;

struct Copy {  // one cp.async in flight
  uint32_t to;
  int bytes;
  unsigned char data[16];
};

struct Thread {
  Fiber fiber;
  bool done = false;
  // The collective it waits in.
  const char* name = nullptr;
  Site site;
  void* operand = nullptr;
  // Copies in issue order; groups[i] is where the i-th committed group ends.
  std::vector<Copy> copies;
  std::vector<size_t> groups;
};

struct Warp {
  uint32_t runnable = kFullWarp;
  uint32_t arrived = 0;     // lanes waiting in a collective for other lanes
  bool at_barrier = false;  // all lanes wait for other warps
};

using Operands = void* const (&)[32];

class Machine {
 public:
  void launch(int blocks, int thread_count, size_t smem_bytes, const std::function<void()>& kernel);

  [[noreturn]] void fail(const std::string& what) const {
    throw Error("block " + std::to_string(current.block) + ": " + what);
  }
  [[noreturn]] void fail_here(const std::string& what, const char* name, Site at) const {
    fail("thread " + std::to_string(current.thread) + " " + what + " in " + name + " (" + text(at) +
         ")");
  }

  // Waits until all lanes of the warp have called; the last one runs execute(operands) for all of
  // them.
  template <class Execute>
  void collective(const char* name, Site site, void* operand, Execute execute) {
    Warp& warp = warps_[current.thread / 32];
    const int lane = current.thread % 32;
    Thread& self = threads_[current.thread];
    self.name = name, self.site = site, self.operand = operand;
    warp.arrived |= 1u << lane;
    if (warp.arrived != kFullWarp) {
      warp.runnable &= ~(1u << lane);
      reschedule();
      return;
    }
    ++stats.collectives;
    void* operands[32] = {};
    const int first = current.thread - lane;
    for (int i = 0; i < 32; ++i) {
      const Thread& other = threads_[first + i];
      const bool same = other.site == site && !std::strcmp(other.name, name);
      if (!same) {
        fail("divergent warp: " + describe(current.thread) + ", " + describe(first + i));
      }
      operands[i] = other.operand;
    }
    warp.arrived = 0;
    execute(operands);
    if (warp.at_barrier) {
      warp.runnable = 0;
      reschedule();
    } else {
      warp.runnable = kFullWarp;
    }
  }

  void arrive_at_barrier();  // called once per warp

  void check_range(size_t offset, size_t bytes, const char* name, Site at) const;
  void track_read(bool whole_warp, size_t offset, size_t bytes, const char* name, Site at);
  void track_write(size_t offset, size_t bytes, bool in_flight, const char* name, Site at);

  void issue_copy(const Copy& copy) { threads_[current.thread].copies.push_back(copy); }
  void commit_copies();
  void finish_copies(int pending_groups);

  void thread_main();  // body of every fiber; leaves the fiber for good

  Options options;
  Stats stats;
  RaceCheck races;

 private:
  void run_block();
  void leave_block() { switch_fiber(threads_[current.thread].fiber, main_); }
  void switch_to(int thread);
  void reschedule();
  int pick();
  std::string describe(int thread) const;
  std::string deadlock() const;

  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  uint32_t at_barrier_ = 0;  // warps that have arrived
  size_t threads_in_block_ = 0, live_ = 0, smem_bytes_ = 0;
  std::vector<char*> stacks_;
  const std::function<void()>* kernel_ = nullptr;
  std::exception_ptr error_;
  Fiber main_;
  std::minstd_rand random_;
};

extern Machine machine;

}  // namespace mqa::emulation
