// Which attention calls the tests make, and on which instruction sets.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "attention_call.h"
#include "attention_oracle.h"
#include "attention_problem.h"
#include "kernels/cpu/isa.h"

namespace mqa::kernels {

constexpr cpu::Isa kIsas[] = {cpu::Isa::kGeneric, cpu::Isa::kAvx2, cpu::Isa::kAvx512,
                              cpu::Isa::kAvx512Bf16, cpu::Isa::kAmx};

constexpr Format kFormats[] = {
    {DType::kFloat32, DType::kFloat32},     {DType::kFloat64, DType::kFloat64},
    {DType::kBFloat16, DType::kBFloat16},   {DType::kFloat16, DType::kFloat16},
    {DType::kFloat32, DType::kInt8},        {DType::kBFloat16, DType::kInt8},
    {DType::kFloat16, DType::kInt8},        {DType::kFloat32, DType::kFloat8E4M3},
    {DType::kBFloat16, DType::kFloat8E4M3}, {DType::kFloat16, DType::kFloat8E4M3},
};

WeightRounding weight_rounding(cpu::Isa isa, Format format);
// How many drawn calls the kernels are quick enough for, where each is made in many ways.
int drawn_calls();

// Uses an instruction set while it lives.
class UseIsa {
 public:
  explicit UseIsa(cpu::Isa isa) { cpu::cap_isa(isa); }
  ~UseIsa() { cpu::cap_isa(cpu::Isa::kAmx); }
  UseIsa(const UseIsa&) = delete;
};

// A test for one instruction set and format; its name tells them. Skipped where the machine lacks
// the instructions.
class AttentionTest : public testing::TestWithParam<std::tuple<cpu::Isa, Format>> {
 protected:
  void SetUp() override;

  cpu::Isa isa() const { return std::get<0>(GetParam()); }
  Format format() const { return std::get<1>(GetParam()); }

 private:
  std::unique_ptr<UseIsa> in_use_;
};

std::string name_of_test(const testing::TestParamInfo<AttentionTest::ParamType>& test);

// Every format with every instruction set that has kernels of its own for it.
#define INSTANTIATE_ATTENTION_TEST(Suite)                                                    \
  INSTANTIATE_TEST_SUITE_P(Kernels, Suite, testing::ValuesIn(kernels_with_their_own_code()), \
                           name_of_test)

std::vector<AttentionTest::ParamType> kernels_with_their_own_code();

// Draws calls: sizes at and beside the borders of groups, tiles and chunks; all options.
class CaseGenerator {
 public:
  explicit CaseGenerator(unsigned seed) : random_(seed) {}

  unsigned seed() { return random_(); }
  int64_t below(int64_t end) { return static_cast<int64_t>(random_() % end); }
  // At most `work` multiplications for the formula.
  Case draw(Format format, int64_t work);
  Layout layout();

 private:
  template <class T>
  T one_of(std::initializer_list<T> values) {
    return values.begin()[below(static_cast<int64_t>(values.size()))];
  }
  Shape shape();
  Options options(const Shape& shape);

  std::mt19937 random_;
};

}  // namespace mqa::kernels
