#include "machine.h"

#include <sys/mman.h>

#include <algorithm>
#include <memory>
#include <new>
#include <numeric>
#include <utility>

namespace mqa::emulation {

Current current;
Machine machine;

namespace {

constexpr size_t kStackBytes = 256 << 10, kGuardBytes = 64 << 10;

void fiber_entry() { machine.thread_main(); }

}  // namespace

void Machine::arrive_at_barrier() {
  const int warp = current.thread / 32;
  at_barrier_ |= 1u << warp;
  warps_[warp].at_barrier = true;
  const uint32_t all = kFullWarp >> (32 - warps_.size());
  if (at_barrier_ != all) return;
  if (options.detect_races) races.barrier(all);
  for (Warp& each : warps_) each.at_barrier = false, each.runnable = kFullWarp;
  at_barrier_ = 0;
}

void Machine::check_range(size_t offset, size_t bytes, const char* name, Site at) const {
  if (offset % bytes) fail_here("uses a misaligned shared address", name, at);
  if (offset > smem_bytes_ || bytes > smem_bytes_ - offset) {
    fail_here("leaves shared memory", name, at);
  }
}

void Machine::track_read(bool whole_warp, size_t offset, size_t bytes, const char* name, Site at) {
  if (!options.detect_races) return;
  const int lane = whole_warp ? RaceCheck::kWholeWarp : current.thread % 32;
  const std::string what = races.read(current.thread / 32, lane, offset, bytes, at);
  if (!what.empty()) fail_here(what + " without a barrier", name, at);
}

void Machine::track_write(size_t offset, size_t bytes, bool in_flight, const char* name, Site at) {
  if (!options.detect_races) return;
  const std::string what =
      races.write(current.thread / 32, current.thread % 32, offset, bytes, in_flight, at);
  if (!what.empty()) fail_here(what + " without a barrier", name, at);
}

void Machine::commit_copies() {
  Thread& self = threads_[current.thread];
  self.groups.push_back(self.copies.size());
}

void Machine::finish_copies(int pending_groups) {
  Thread& self = threads_[current.thread];
  if (self.groups.size() <= static_cast<size_t>(pending_groups)) return;
  const size_t groups = self.groups.size() - pending_groups, copies = self.groups[groups - 1];
  for (size_t i = 0; i < copies; ++i) {
    const Copy& copy = self.copies[i];
    std::memcpy(current.smem + copy.to, copy.data, copy.bytes);
    if (options.detect_races) races.landed(current.thread / 32, copy.to, copy.bytes);
  }
  self.copies.erase(self.copies.begin(), self.copies.begin() + copies);
  self.groups.erase(self.groups.begin(), self.groups.begin() + groups);
  for (size_t& end : self.groups) end -= copies;
}

void Machine::switch_to(int thread) {
  if (thread == current.thread) return;
  Fiber& from = threads_[current.thread].fiber;
  current.thread = thread;
  switch_fiber(from, threads_[thread].fiber);
}

void Machine::reschedule() {
  const int next = pick();
  if (next < 0) fail(deadlock());
  switch_to(next);
}

// A runnable thread, or -1: the next lane of this warp if there is one, else of the next warp.
int Machine::pick() {
  int warp = current.thread / 32, lane = (current.thread + 1) % 32;
  if (options.schedule_seed) {
    const unsigned r = random_();
    lane = r % 32;
    if (r >> 5 & 1) warp = (r >> 6) % warps_.size();
  }
  for (size_t i = 0; i < warps_.size(); ++i, warp = (warp + 1) % warps_.size()) {
    const uint32_t ready = warps_[warp].runnable;
    if (!ready) continue;
    const uint32_t after = ready & kFullWarp << lane;
    return warp * 32 + __builtin_ctz(after ? after : ready);
  }
  return -1;
}

std::string Machine::describe(int thread) const {
  const Thread& t = threads_[thread];
  const std::string name = "thread " + std::to_string(thread);
  return t.done ? name + " has returned" : name + " waits in " + t.name + " (" + text(t.site) + ")";
}

// One line for each run of threads in the same state.
std::string Machine::deadlock() const {
  std::string out = "threads wait for others that never come:", last;
  for (size_t i = 0; i < threads_in_block_; ++i) {
    const std::string thread = describe(static_cast<int>(i));
    const std::string state = thread.substr(thread.find(' ', 7));
    if (state != last) out += "\n  from " + thread;
    last = state;
  }
  return out;
}

void Machine::thread_main() {
  enter_fiber(main_);
  const int self = current.thread;
  Thread& t = threads_[self];
  try {
    (*kernel_)();
    if (!t.copies.empty()) {
      fail("thread " + std::to_string(self) + " returns with cp_async copies in flight");
    }
  } catch (...) {
    error_ = std::current_exception();
  }
  if (error_) leave_block();
  t.done = true;
  warps_[self / 32].runnable &= ~(1u << self % 32);
  if (--live_ == 0) leave_block();
  const int next = pick();
  if (next < 0) {
    try {
      fail(deadlock());
    } catch (...) {
      error_ = std::current_exception();
    }
    leave_block();
  }
  switch_to(next);
  __builtin_unreachable();
}

void Machine::run_block() {
  for (size_t i = 0; i < threads_in_block_; ++i) {
    Thread& t = threads_[i];
    t.done = false;
    t.copies.clear();
    t.groups.clear();
    // Staggered tops: otherwise the hot part of every stack falls into the same cache sets.
    start_fiber(t.fiber, fiber_entry, stacks_[i], kStackBytes - i % 64 * 832);
  }
  warps_.assign(threads_in_block_ / 32, Warp());
  at_barrier_ = 0;
  std::memset(current.smem, 0xff, smem_bytes_);  // NaN as bfloat16, float16 and float
  if (options.detect_races) races.reset(smem_bytes_, static_cast<int>(warps_.size()));
  live_ = threads_in_block_;
  current.thread = 0;
  switch_fiber(main_, threads_[0].fiber);
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void Machine::launch(int blocks, int thread_count, size_t smem_bytes,
                     const std::function<void()>& kernel) {
  if (thread_count <= 0 || thread_count % 32 || thread_count > 1024) {
    throw Error("a block has 32, 64, ... or 1024 threads");
  }
  threads_in_block_ = thread_count;
  if (threads_.size() < threads_in_block_) threads_.resize(threads_in_block_);
  while (stacks_.size() < threads_in_block_) {
    void* p = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    mprotect(p, kGuardBytes, PROT_NONE);
    stacks_.push_back(static_cast<char*>(p) + kGuardBytes);
  }
  // Exactly smem_bytes long, so that AddressSanitizer sees any access beyond it.
  constexpr std::align_val_t kAlignment{128};
  const auto release = [](unsigned char* p) { ::operator delete(p, kAlignment); };
  const std::unique_ptr<unsigned char, decltype(release)> smem(
      static_cast<unsigned char*>(::operator new(smem_bytes, kAlignment)), release);
  smem_bytes_ = smem_bytes;
  kernel_ = &kernel;
  random_.seed(options.schedule_seed);
  current.threads = thread_count, current.smem = smem.get();

  std::vector<int> order(blocks);
  std::iota(order.begin(), order.end(), 0);
  if (options.schedule_seed) std::shuffle(order.begin(), order.end(), random_);
  for (int block : order) {
    current.block = block;
    run_block();
  }
}

void set_options(const Options& options) { machine.options = options; }

Stats take_stats() { return std::exchange(machine.stats, Stats()); }

void launch(int blocks, int threads, size_t smem_bytes, const std::function<void()>& kernel) {
  machine.launch(blocks, threads, smem_bytes, kernel);
}

}  // namespace mqa::emulation
