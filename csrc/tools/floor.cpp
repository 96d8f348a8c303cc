// mqa-floor THREADS: what this machine can do at most, as JSON: bytes read per second for several
// sizes of working set, flops per second of each unit, exponentials per second. Units that the
// machine lacks, or that MQA_CPU_ISA turns off, are null.
#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "kernels/cpu/isa.h"
#include "probes.h"

namespace mqa::floor {
namespace {

using Clock = std::chrono::steady_clock;
using kernels::cpu::Isa;

void on_threads(int threads, const std::function<void(int thread)>& body) {
  std::vector<std::jthread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(body, thread);
  body(0);
}

// Seconds that `body` takes on all threads at once, their creation left out; the best of some
// rounds, since a machine is never faster than it can be.
double best_seconds(int threads, const std::function<void(int thread)>& body) {
  constexpr int kRounds = 7;
  double best = std::numeric_limits<double>::infinity();
  std::barrier barrier(threads);
  on_threads(threads, [&](int thread) {
    for (int round = 0; round < kRounds; ++round) {
      barrier.arrive_and_wait();
      const auto start = Clock::now();
      body(thread);
      barrier.arrive_and_wait();
      const std::chrono::duration<double> elapsed = Clock::now() - start;
      if (thread == 0) best = std::min(best, elapsed.count());
    }
  });
  return best;
}

// Operations per second of all threads; 0 where the machine lacks the unit.
double rate(const Probe& probe, int threads) {
  if (!probe.run) return 0;
  constexpr double kRoundSeconds = 5e-3;
  int64_t iterations = 1;
  for (std::chrono::duration<double> elapsed{}; elapsed.count() < kRoundSeconds; iterations *= 2) {
    const auto start = Clock::now();
    probe.run(iterations);
    elapsed = Clock::now() - start;
  }
  const double seconds = best_seconds(threads, [&](int) { probe.run(iterations); });
  return static_cast<double>(probe.work * iterations) * threads / seconds;
}

struct Bandwidth {
  int64_t bytes;  // the working set of all threads together
  double bytes_per_second;
};

std::vector<Bandwidth> read_bandwidth(Read read, int threads) {
  constexpr int64_t kMiB = int64_t{1} << 20;
  constexpr int64_t kMemory = 1024 * kMiB;  // more than any cache, also where it is shared
  constexpr int64_t kLeastRead = 256 * kMiB;
  constexpr int64_t kStepBytes = kReadStep * int64_t{sizeof(float)};

  std::vector<int64_t> working_sets;
  for (int64_t bytes = kMiB / 4; bytes <= kMemory; bytes *= 2) working_sets.push_back(bytes);

  const auto release = [](float* data) { std::free(data); };
  const std::unique_ptr<float, decltype(release)> memory(
      static_cast<float*>(std::aligned_alloc(64, kMemory)), release);
  if (!memory) throw std::runtime_error("expected 1 GiB of free memory");
  // Each thread reads what it wrote first, so that on several NUMA nodes the memory is its own.
  const int64_t share = kMemory / threads / kStepBytes * kReadStep;
  std::vector<float> results(threads);
  on_threads(threads, [&](int thread) { std::fill_n(memory.get() + thread * share, share, 1.f); });

  std::vector<Bandwidth> measured;
  for (int64_t bytes : working_sets) {
    const int64_t count = std::max(bytes / threads / kStepBytes, int64_t{1}) * kReadStep;
    const int64_t passes = std::max(kLeastRead / bytes, int64_t{1});
    const double seconds = best_seconds(threads, [&](int thread) {
      const float* part = memory.get() + thread * share;
      float sum = 0;
      for (int64_t pass = 0; pass < passes; ++pass) sum += read(part, count);
      results[thread] = sum;
    });
    const int64_t total = count * threads * int64_t{sizeof(float)};
    measured.push_back({total, static_cast<double>(total * passes) / seconds});
  }
  return measured;
}

void print_rate(const char* name, double rate) {
  if (rate > 0) {
    std::printf(",\n  \"%s\": %.4g", name, rate);
  } else {
    std::printf(",\n  \"%s\": null", name);
  }
}

struct Probes {
  Read read = generic::read;
  Probe float32_fma = generic::float32_fma, exp_float32 = generic::exp_float32,
        exp_bfloat16 = generic::exp_bfloat16, bfloat16_dot, bfloat16_amx;
};

Probes probes_for([[maybe_unused]] Isa isa) {
  Probes probes;
#ifdef __x86_64__
  if (isa >= Isa::kAvx512) {
    probes = {avx512::read, avx512::float32_fma, avx512::exp_float32, avx512::exp_bfloat16, {}, {}};
  } else if (isa >= Isa::kAvx2) {
    probes = {avx2::read, avx2::float32_fma, avx2::exp_float32, avx2::exp_bfloat16, {}, {}};
  }
  if (isa >= Isa::kAvx512Bf16) probes.bfloat16_dot = bfloat16_dot;
  if (isa >= Isa::kAmx) probes.bfloat16_amx = bfloat16_amx;
#endif
  return probes;
}

void measure(int threads) {
  const Isa isa = kernels::cpu::current_isa();
  const Probes probes = probes_for(isa);
  const std::vector<Bandwidth> bandwidths = read_bandwidth(probes.read, threads);
  std::printf("{\n  \"isa\": \"%s\",\n  \"threads\": %d,\n  \"read\": [",
              kernels::cpu::isa_name(isa), threads);
  for (const Bandwidth& bandwidth : bandwidths) {
    std::printf("%s\n    {\"bytes\": %lld, \"bytes_per_second\": %.4g}",
                &bandwidth == bandwidths.data() ? "" : ",", static_cast<long long>(bandwidth.bytes),
                bandwidth.bytes_per_second);
  }
  std::printf("\n  ]");
  print_rate("float32_fma", rate(probes.float32_fma, threads));
  print_rate("bfloat16_dot", rate(probes.bfloat16_dot, threads));
  print_rate("bfloat16_amx", rate(probes.bfloat16_amx, threads));
  print_rate("exp_float32", rate(probes.exp_float32, threads));
  print_rate("exp_bfloat16", rate(probes.exp_bfloat16, threads));
  std::printf("\n}\n");
}

int parse_threads(int argc, char** argv) {
  constexpr int kMost = 1024;
  char* end = nullptr;
  const long threads = argc == 2 ? std::strtol(argv[1], &end, 10) : 0;
  if (threads < 1 || threads > kMost || *end != '\0') {
    throw std::invalid_argument("expected one argument, the number of threads, 1 to " +
                                std::to_string(kMost));
  }
  return static_cast<int>(threads);
}

}  // namespace
}  // namespace mqa::floor

int main(int argc, char** argv) try {
  mqa::floor::measure(mqa::floor::parse_threads(argc, argv));
} catch (const std::exception& error) {
  std::fprintf(stderr, "mqa-floor: %s\n", error.what());
  return 2;
}
