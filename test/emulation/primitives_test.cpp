// What the emulation promises: each primitive does what the PTX manual says, and each breach of a
// rule is reported with its place.
#include <cmath>
#include <vector>

#include "one_block.h"

namespace mqa::kernels::cuda {
namespace {

float* word(int i) { return reinterpret_cast<float*>(dynamic_smem()) + i; }

TEST(Collectives, ShuffleAndVote) {
  std::vector<int> got(64);
  EXPECT_EQ(run([&] { got[thread_index()] = shfl_xor(thread_index(), 5); }), "");
  for (int i = 0; i < 64; ++i) EXPECT_EQ(got[i], i ^ 5);
  EXPECT_EQ(run([&] { got[thread_index()] = shfl(thread_index(), 40 + lane_index() / 8); }), "");
  for (int i = 0; i < 64; ++i) EXPECT_EQ(got[i], i / 32 * 32 + 8 + i % 32 / 8);
  std::vector<int64_t> wide(64);
  EXPECT_EQ(run([&] { wide[thread_index()] = shfl(int64_t{1} << thread_index() % 32 << 30, 7); }),
            "");
  for (int64_t x : wide) EXPECT_EQ(x, int64_t{1} << 37);
  EXPECT_EQ(run([&] { got[thread_index()] = vote_any(thread_index() == 40); }), "");
  for (int i = 0; i < 64; ++i) EXPECT_EQ(got[i], i >= 32);
}

TEST(Collectives, WhoDoesNotComeIsNamed) {
  EXPECT_TRUE(has(run([] {
                    if (lane_index() < 16) shfl_xor(1, 1);
                  }),
                  "shfl_xor (primitives_test.cpp"));
  EXPECT_TRUE(has(run([] {
                    if (lane_index() < 16) {
                      shfl_xor(1, 1);
                    } else {
                      vote_any(true);
                    }
                  }),
                  "divergent warp"));
  EXPECT_TRUE(has(run([] {
                    if (warp_index() == 0) sync_block();
                  }),
                  "waits in sync_block"));
}

TEST(Collectives, TheSameLineOfAnotherFileIsAnotherPlace) {
  const std::string error = run(
      [] { cuda::sync_warp(lane_index() < 16 ? Site{"cuda/a.cuh", 7} : Site{"cuda/b.cuh", 7}); });
  EXPECT_TRUE(has(error, "divergent warp"));
  EXPECT_TRUE(has(error, "a.cuh:7"));
  EXPECT_TRUE(has(error, "b.cuh:7"));
}

TEST(SharedMemory, StartsAsNaNAndHasBounds) {
  float seen = 0;
  EXPECT_EQ(run([&] {
              if (thread_index() == 0) seen = smem_load<float>(word(3));
            }),
            "");
  EXPECT_TRUE(std::isnan(seen));
  EXPECT_TRUE(has(run([] { smem_store(word(256), 1.f); }), "leaves shared memory in smem_store"));
  EXPECT_TRUE(has(run([] { smem_store(word(1), float4{}); }), "misaligned"));
}

TEST(SharedMemory, OnlyBarriersOrderThreads) {
  const auto exchange = [](void (*sync)(), int distance) {
    return [=] {
      smem_store(word(thread_index()), 1.f);
      sync();
      smem_load<float>(word((thread_index() + distance) % 64));
    };
  };
  const char* const race = "without a barrier";
  EXPECT_TRUE(has(races(exchange([] {}, 1)), race));
  EXPECT_TRUE(has(races(exchange([] { vote_any(true); }, 1)), race));
  EXPECT_TRUE(has(races(exchange([] { sync_warp(); }, 32)), race));
  EXPECT_EQ(races(exchange([] { sync_block(); }, 32)), "");
  EXPECT_EQ(races([] {
              if (warp_index() != 0) return;
              smem_store(word(lane_index()), 1.f);
              sync_warp();
              smem_load<float>(word(lane_index() ^ 1));
            }),
            "");
  EXPECT_TRUE(has(races([] {
                    smem_load<float>(word(thread_index() ^ 1));
                    smem_store(word(thread_index()), 1.f);
                  }),
                  race));
}

TEST(SharedMemory, ARaceNamesBothPlaces) {
  const auto at = [](int line) { return Site{"cuda/kernel.cuh", line}; };
  const std::string late_read = races([&] {
    if (thread_index() == 0) smem_store(word(1), 1.f, at(10));
    if (thread_index() == 1) smem_load<float>(word(1), at(20));
  });
  EXPECT_TRUE(has(late_read, "kernel.cuh:10"));
  EXPECT_TRUE(has(late_read, "kernel.cuh:20"));
  const std::string late_write = races([&] {
    if (thread_index() == 0) smem_load<float>(word(1), at(10));
    if (thread_index() == 1) smem_store(word(1), 1.f, at(20));
  });
  EXPECT_TRUE(has(late_write, "kernel.cuh:10"));
  EXPECT_TRUE(has(late_write, "kernel.cuh:20"));
}

TEST(GlobalMemory, HoldsEverySize) {
  alignas(16) unsigned char memory[17] = {};
  const auto keeps = [&](auto value) {
    store(memory, value);
    const auto back = load<decltype(value)>(memory);
    return std::memcmp(&back, &value, sizeof value) == 0 && memory[sizeof value] == 0;
  };
  EXPECT_EQ(run([&] {
              if (thread_index() != 0) return;
              EXPECT_TRUE(keeps(int8_t{-3}));
              EXPECT_TRUE(keeps(uint16_t{0xabcd}));
              EXPECT_TRUE(keeps(1.5f));
              EXPECT_TRUE(keeps(Words2{1, 2}));
              EXPECT_TRUE(keeps(Words4{1, 2, 3, 4}));
            }),
            "");
}

TEST(GlobalMemory, IsAligned) {
  alignas(16) static unsigned char memory[32] = {};
  EXPECT_TRUE(has(run([] { load<Words4>(memory + 8); }), "misaligned global address"));
  EXPECT_TRUE(has(run([] { store(memory + 1, uint16_t{1}); }), "misaligned global address"));
}

TEST(AsyncCopies, LandAtTheWaitThatCoversThem) {
  alignas(16) const float source[4] = {1, 2, 3, 4};
  float early = 0, late = 0, zero = 1, single = 0;
  EXPECT_EQ(run([&] {
              if (thread_index() != 0) return;
              cp_async_16(smem_address(word(0)), source, true);
              cp_async_commit();
              cp_async_16(smem_address(word(4)), source, false);
              cp_async_4(smem_address(word(9)), source + 2, true);
              cp_async_commit();
              early = smem_load<float>(word(1));
              cp_async_wait<1>();
              late = smem_load<float>(word(1));
              cp_async_wait<0>();
              zero = smem_load<float>(word(4));
              single = smem_load<float>(word(9));
            }),
            "");
  EXPECT_TRUE(std::isnan(early));
  EXPECT_EQ(late, 2);
  EXPECT_EQ(zero, 0);
  EXPECT_EQ(single, 3);
}

TEST(AsyncCopies, NeedAWaitAndABarrier) {
  alignas(16) static const float source[4] = {1, 2, 3, 4};
  const auto send = [] {
    if (thread_index() == 0) cp_async_16(smem_address(word(0)), source, true);
    cp_async_commit();
  };
  EXPECT_TRUE(has(run(send), "copies in flight"));
  EXPECT_TRUE(has(races([&] {
                    send();
                    sync_block();
                    smem_load<float>(word(0));
                    cp_async_wait<0>();
                  }),
                  "still being copied"));
  EXPECT_TRUE(has(races([&] {
                    send();
                    cp_async_wait<0>();
                    smem_load<float>(word(0));
                  }),
                  "written by thread"));
  EXPECT_EQ(races([&] {
              send();
              cp_async_wait<0>();
              sync_block();
              smem_load<float>(word(0));
            }),
            "");
  EXPECT_TRUE(has(run([] {
                    cp_async_16(smem_address(word(0)), reinterpret_cast<const char*>(source) + 4,
                                true);
                  }),
                  "misaligned global address"));
}

// Four matrices of 8 x 8, one after the other, whose elements are their own numbers.
void check_ldmatrix(bool transposed) {
  EXPECT_EQ(run([&] {
              if (warp_index() != 0) return;
              const int lane = lane_index();
              auto* const smem = reinterpret_cast<uint16_t*>(dynamic_smem());
              for (int i = lane; i < 256; i += 32) smem_store(smem + i, static_cast<uint16_t>(i));
              sync_warp();
              uint32_t r[4];
              const uint32_t address = smem_address(smem + lane * 8);
              transposed ? ldmatrix_x4_trans(r, address) : ldmatrix_x4(r, address);
              for (uint32_t matrix = 0; matrix < 4; ++matrix) {
                const uint32_t i = lane / 4, j = lane % 4 * 2;
                const uint32_t low = transposed ? j * 8 + i : i * 8 + j;
                const uint32_t high = low + (transposed ? 8 : 1);
                EXPECT_EQ(r[matrix], (matrix * 64 + high) << 16 | (matrix * 64 + low));
              }
            }),
            "");
}

TEST(TensorCore, LdmatrixGivesEachLaneAPair) {
  check_ldmatrix(/*transposed=*/false);
  check_ldmatrix(/*transposed=*/true);
}

// Each column of b picks one column of a: which register of which lane holds what is seen alone.
TEST(TensorCore, MmaFindsItsOperandsWhereTheyLie) {
  for (int first : {0, 8}) {
    EXPECT_EQ(run([&] {
                if (warp_index() != 0) return;
                const int row = lane_index() / 4, pair = lane_index() % 4 * 2;
                const auto a_at = [](int m, int k) { return static_cast<float>(m * 16 + k); };
                const auto b_at = [&](int k, int n) { return k == first + n ? 1.f : 0.f; };
                uint32_t a[4], b[2];
                for (int i = 0; i < 4; ++i) {
                  const int m = row + i % 2 * 8, k = pair + i / 2 * 8;
                  a[i] = pack<bf16>(a_at(m, k), a_at(m, k + 1));
                }
                for (int i = 0; i < 2; ++i) {
                  const int k = pair + i * 8;
                  b[i] = pack<bf16>(b_at(k, row), b_at(k + 1, row));
                }
                float c[4] = {};
                mma<bf16>(c, a, b[0], b[1]);
                for (int i = 0; i < 4; ++i) {
                  EXPECT_EQ(c[i], a_at(row + i / 2 * 8, first + pair + i % 2));
                }
              }),
              "");
  }
}

// A product fed by ldmatrix, the way attention uses it, against a plain one.
template <class T>
void check_product(bool transposed) {
  const auto small = [](int i) { return narrow<T>(static_cast<float>(i * 37 % 61 - 30) / 8); };
  std::vector<T> a(16 * 16), b(8 * 16), b_transposed(16 * 8);  // b[n][k]
  for (int i = 0; i < 256; ++i) a[i] = small(i);
  for (int i = 0; i < 128; ++i) b[i] = b_transposed[i % 16 * 8 + i / 16] = small(i + 5);
  std::vector<float> c(16 * 8);
  const auto kernel = [&] {
    if (warp_index() != 0) return;
    T* const smem = reinterpret_cast<T*>(dynamic_smem());
    const int lane = lane_index(), matrix = lane / 8, row = lane % 8;
    for (int i = lane; i < 256; i += 32) smem_store(smem + i, a[i]);
    for (int i = lane; i < 128; i += 32) {
      smem_store(smem + 256 + i, transposed ? b_transposed[i] : b[i]);
    }
    sync_warp();
    uint32_t left[4], right[4];
    ldmatrix_x4(left, smem_address(smem + (matrix % 2 * 8 + row) * 16 + matrix / 2 * 8));
    if (transposed) {
      ldmatrix_x4_trans(right, smem_address(smem + 256 + (matrix % 2 * 8 + row) * 8));
    } else {
      ldmatrix_x4(right, smem_address(smem + 256 + row * 16 + matrix % 2 * 8));
    }
    float sums[4] = {1, 1, 1, 1};
    mma<T>(sums, left, right[0], right[1]);
    for (int i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sums[i];
  };
  ASSERT_EQ(races(kernel), "");
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 8; ++n) {
      double expected = 1;
      for (int k = 0; k < 16; ++k) {
        expected += static_cast<double>(to_float(a[m * 16 + k])) * to_float(b[n * 16 + k]);
      }
      ASSERT_NEAR(c[m * 8 + n], expected, 1e-4) << m << ", " << n;
    }
  }
}

TEST(TensorCore, MultipliesWhatLdmatrixLoads) {
  for (bool transposed : {false, true}) {
    check_product<bf16>(transposed);
    check_product<f16>(transposed);
  }
}

TEST(TensorCore, BankConflictsAreCounted) {
  const auto conflicts = [](int row_bytes) {
    emulation::take_stats();
    EXPECT_EQ(run([=] {
                if (warp_index() != 0) return;
                uint32_t r[4];
                ldmatrix_x4(r, lane_index() % 8 * row_bytes);
              }),
              "");
    return emulation::take_stats().bank_conflicts;
  };
  EXPECT_EQ(conflicts(16), 0u);
  EXPECT_EQ(conflicts(32), 4u * 1);
  EXPECT_EQ(conflicts(128), 4u * 7);
}

TEST(Arithmetic, PairsOfSixteenBits) {
  EXPECT_EQ(pack<bf16>(1.f, -2.f), 0xc0003f80u);
  EXPECT_EQ(pack<f16>(1.f, -2.f), 0xc0003c00u);
  EXPECT_EQ(narrow<bf16>(1.00390625f).bits, 0x3f80);  // ties go to even
  EXPECT_EQ(narrow<f16>(65519.f).bits, 0x7bff);
  EXPECT_EQ(narrow<f16>(-65520.f).bits, 0xfc00);
  EXPECT_EQ(subtract_f16x2(pack<f16>(1152.f, 1024.f), 0x64806480u), pack<f16>(0.f, -128.f));
  EXPECT_EQ(
      fma_bf16x2(pack<bf16>(3.f, 0x1p-133f), pack<bf16>(-1.f, 0x1p120f), pack<bf16>(128.f, -0.f)),
      pack<bf16>(125.f, 0x1p-13f));
}

// 260 * -7168 lies halfway between two bfloat16, where a third number of any size decides.
TEST(Arithmetic, FmaRoundsOnce) {
  const auto product_plus = [](float x) {
    return fma_bf16x2(pack<bf16>(260.f, 0.f), pack<bf16>(-7168.f, 0.f), pack<bf16>(x, 0.f));
  };
  EXPECT_EQ(product_plus(0.f), 0xc9e4u);  // ties go to even
  EXPECT_EQ(product_plus(0x1p-20f), 0xc9e3u);
  EXPECT_EQ(product_plus(-0x1p-20f), 0xc9e4u);
  EXPECT_EQ(product_plus(0x1p-120f), 0xc9e3u);
  EXPECT_EQ(product_plus(INFINITY), 0x7f80u);
  const uint32_t large = pack<bf16>(0x1p100f, 0.f);
  EXPECT_EQ(fma_bf16x2(large, large, 0), 0x7f80u);
}

TEST(Arithmetic, SubtractKeepsSubnormalNumbers) {
  EXPECT_EQ(subtract_f16x2(0x04010402, 0x04000400), 0x00010002u);
}

TEST(Arithmetic, NaNBecomesTheCanonicalOne) {
  for (uint32_t bits : {0x7fc00000u, 0xffc00001u, 0x7f800001u}) {
    EXPECT_EQ(pack<bf16>(as_float(bits), as_float(bits)), 0x7fff7fffu);
    EXPECT_EQ(pack<f16>(as_float(bits), as_float(bits)), 0x7fff7fffu);
  }
  EXPECT_EQ(subtract_f16x2(0x7c007c00, 0x7c007c00), 0x7fff7fffu);  // infinity - infinity
}

TEST(Arithmetic, EveryNumberOfSixteenBitsSurvivesWidening) {
  for (uint32_t i = 0; i < 0x10000; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    if ((i & 0x7fff) <= 0x7f80) {
      ASSERT_EQ(narrow<bf16>(to_float(bf16{bits})).bits, i);
    }
    if ((i & 0x7fff) <= 0x7c00) {
      ASSERT_EQ(narrow<f16>(to_float(f16{bits})).bits, i);
    }
  }
  EXPECT_EQ(to_float(f16{0x3555}), 0.333251953125f);
  EXPECT_EQ(to_float(f16{0x0001}), 0x1p-24f);
  EXPECT_EQ(to_float(bf16{0x3eab}), 0.333984375f);
  EXPECT_EQ(as_bits(as_float(0x7fa00001)), 0x7fa00001u);
}

TEST(Arithmetic, PermuteBytes) {
  EXPECT_EQ(permute_bytes(0x33221100, 0x77665544, 0x3210), 0x33221100u);
  EXPECT_EQ(permute_bytes(0x33221100, 0x77665544, 0x7654), 0x77665544u);
  EXPECT_EQ(permute_bytes(0x33221100, 0x77665544, 0x4240), 0x44224400u);
}

TEST(Arithmetic, Ex2FlushesWhatIsBelowTheNormalRange) {
  EXPECT_EQ(ex2(-INFINITY), 0);
  EXPECT_EQ(ex2(-140.f), 0);
  EXPECT_EQ(ex2(0.f), 1);
  EXPECT_EQ(ex2(3.f), 8);
}

}  // namespace
}  // namespace mqa::kernels::cuda
