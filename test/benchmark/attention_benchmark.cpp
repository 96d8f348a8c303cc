// Time of the attention kernel alone, on one thread and one cache, for every instruction set that
// the machine has. Built for work on kernels; `mqa bench` compares with other implementations.
//
//   attention_benchmark --benchmark_filter='amx/bfloat16/G:32/.*'
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/isa.h"
#include "kernels/formats.h"

namespace mqa::kernels {
namespace {

using cpu::Isa;

struct Shape {
  DType dtype;
  int64_t G, T, S, D;  // one KV head; T == 1 is a decode step, T == S a causal prefill
};

std::vector<std::byte> random_values(DType dtype, int64_t count) {
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  std::vector<std::byte> stored(count * size_of(dtype));
  store_row(dtype, stored.data(), 0, count, 1.f, values.data());
  return stored;
}

// Counters: bytes of the cache and flops, per second.
void attention(benchmark::State& state, Isa isa, const Shape& s) {
  cpu::cap_isa(isa);
  const std::vector<std::byte> query = random_values(s.dtype, s.G * s.T * s.D);
  std::vector<std::byte> key = random_values(s.dtype, s.S * s.D), value = key, out(query.size());

  AttentionParams params{};
  params.B = params.H_kv = 1, params.H_q = s.G, params.T = s.T, params.S = s.S;
  params.D = params.D_v = s.D;
  params.query = query.data();
  params.dtype = s.dtype;
  params.query_batch_stride = s.G * s.T * s.D;
  params.query_head_stride = s.T * s.D;
  params.query_token_stride = s.D;
  params.key = {key.data(), s.dtype, s.S * s.D, s.S * s.D, s.D, {}};
  params.value = {value.data(), s.dtype, s.S * s.D, s.S * s.D, s.D, {}};
  params.is_causal = s.T > 1;
  params.window_left = params.window_right = -1;
  params.scale = 1 / std::sqrt(static_cast<double>(s.D));
  params.out = out.data();

  for (auto _ : state) {
    cpu::attention(params, {});
    benchmark::ClobberMemory();
  }

  const auto per_second = [&](int64_t per_call) {
    return benchmark::Counter(static_cast<double>(per_call),
                              benchmark::Counter::kIsIterationInvariantRate);
  };
  const int64_t visible = s.T * s.S - s.T * (s.T - 1) / 2;
  state.counters["bytes"] = per_second(static_cast<int64_t>(key.size() + value.size()));
  state.counters["flops"] = per_second(4 * s.G * visible * s.D);
}

std::string name(Isa isa, const Shape& s) {
  const char* dtype = s.dtype == DType::kFloat32    ? "float32"
                      : s.dtype == DType::kBFloat16 ? "bfloat16"
                                                    : "float16";
  const auto part = [](const char* letter, int64_t size) {
    return std::string("/") + letter + ":" + std::to_string(size);
  };
  return std::string(cpu::isa_name(isa)) + "/" + dtype + part("G", s.G) + part("T", s.T) +
         part("S", s.S) + part("D", s.D);
}

void register_all(Isa machine) {
  std::vector<Shape> shapes;
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    for (int64_t D : {64, 128, 256}) {
      for (int64_t S : {512, 8192}) {
        for (int64_t G : {1, 4, 8, 16, 32, 71, 128}) shapes.push_back({dtype, G, 1, S, D});
      }
      for (int64_t G : {8, 32}) shapes.push_back({dtype, G, 1024, 1024, D});
    }
  }
  for (int isa = 0; isa <= static_cast<int>(machine); ++isa) {
    for (const Shape& shape : shapes) {
      benchmark::RegisterBenchmark(name(static_cast<Isa>(isa), shape).c_str(), attention,
                                   static_cast<Isa>(isa), shape)
          ->Unit(benchmark::kMicrosecond);
    }
  }
}

}  // namespace
}  // namespace mqa::kernels

int main(int argc, char** argv) {
  mqa::kernels::register_all(mqa::kernels::cpu::current_isa());
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
}
