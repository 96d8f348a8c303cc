// Host half of device.cuh: the same names, carried out by the emulation. Included by device.cuh
// only.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "emulation.h"
#include "kernels/numeric.h"
#include "rounding.h"

#define KERNEL(threads) inline void
#define GRID_CONSTANT
#define DEVICE inline

namespace mqa::kernels::cuda {

namespace emulation = mqa::emulation;
using emulation::Site;

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

template <class... P>
Status launch(void (*kernel)(P...), int64_t blocks, int threads, int smem_bytes, Stream,
              bool /*dependent*/, const P&... arguments) {
  emulation::launch(static_cast<int>(blocks), threads, smem_bytes, [&] { kernel(arguments...); });
  return kSuccess;
}

inline int thread_index() { return emulation::current.thread; }
inline int lane_index() { return emulation::current.thread & 31; }
inline int warp_index() { return emulation::current.thread >> 5; }
inline int block_index() { return emulation::current.block; }

inline void sync_block(Site at = Site::here()) { emulation::sync_block(at); }
inline void sync_warp(Site at = Site::here()) { emulation::sync_warp(at); }
inline void wait_for_previous_kernel() {}  // launches run one after another

template <class T>
T shuffle(emulation::Shuffle kind, T v, int operand, Site at) {
  uint32_t words[sizeof(T) / 4];
  static_assert(sizeof words == sizeof v);
  std::memcpy(words, &v, sizeof v);
  for (uint32_t& word : words) word = emulation::shuffle(kind, word, operand, at);
  std::memcpy(&v, words, sizeof v);
  return v;
}
template <class T>
T shfl(T v, int lane, Site at = Site::here()) {
  return shuffle(emulation::Shuffle::kIndex, v, lane, at);
}
template <class T>
T shfl_xor(T v, int lanes, Site at = Site::here()) {
  return shuffle(emulation::Shuffle::kXor, v, lanes, at);
}
inline bool vote_any(bool p, Site at = Site::here()) { return emulation::vote_any(p, at); }

template <class T>
T load(const void* p, Site at = Site::here()) {
  emulation::global_access(p, sizeof(T), at);
  T v;
  std::memcpy(&v, p, sizeof(T));
  return v;
}
template <class T>
void store(void* p, T v, Site at = Site::here()) {
  emulation::global_access(p, sizeof(T), at);
  std::memcpy(p, &v, sizeof(T));
}

inline unsigned char* dynamic_smem() { return emulation::current.smem; }
inline uint32_t smem_address(const void* p, Site at = Site::here()) {
  return emulation::smem_offset(p, at);
}
template <class T>
T smem_load(const void* p, Site at = Site::here()) {
  T v;
  emulation::smem_read(&v, p, sizeof(T), at);
  return v;
}
template <class T>
void smem_store(void* p, T v, Site at = Site::here()) {
  emulation::smem_write(p, &v, sizeof(T), at);
}

inline void cp_async_16(uint32_t to, const void* from, bool valid, Site at = Site::here()) {
  emulation::cp_async(16, to, from, valid, at);
}
inline void cp_async_4(uint32_t to, const void* from, bool valid, Site at = Site::here()) {
  emulation::cp_async(4, to, from, valid, at);
}
inline void cp_async_commit() { emulation::cp_async_commit(); }
template <int kPending>
void cp_async_wait() {
  emulation::cp_async_wait(kPending);
}

inline void ldmatrix_x4(uint32_t (&r)[4], uint32_t row_address, Site at = Site::here()) {
  emulation::ldmatrix_x4("ldmatrix_x4", r, row_address, /*transpose=*/false, at);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row_address, Site at = Site::here()) {
  emulation::ldmatrix_x4("ldmatrix_x4_trans", r, row_address, /*transpose=*/true, at);
}

template <class T>
inline constexpr emulation::Half kHalf =
    std::is_same_v<T, bf16> ? emulation::Half::kBFloat16 : emulation::Half::kFloat16;

template <class T>
void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Site at = Site::here()) {
  emulation::mma_m16n8k16(kHalf<T>, c, a, b0, b1, at);
}

inline float as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t as_bits(float x) { return std::bit_cast<uint32_t>(x); }

inline float to_float(bf16 x) { return bfloat16_to_float(x.bits); }
inline float to_float(f16 x) { return float16_to_float(x.bits); }
template <class T>
T narrow(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    if (std::isnan(x)) return {0x7fff};  // the only NaN that a conversion gives
    return {kHalf<T> == emulation::Half::kBFloat16 ? float_to_bfloat16(x) : float_to_float16(x)};
  }
}
template <class T>
uint32_t pack(float low, float high) {
  return narrow<T>(low).bits | static_cast<uint32_t>(narrow<T>(high).bits) << 16;
}

inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  uint32_t r = 0;
  for (int i = 0; i < 4; ++i) {
    r |= static_cast<uint32_t>(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  }
  return r;
}

// body(lower numbers...) and body(upper numbers...) of pairs, rounded once
template <class T, class Body, class... Pairs>
uint32_t for_both(const Body& body, Pairs... pairs) {
  const auto number = [](uint32_t bits) { return to_float(T{static_cast<uint16_t>(bits)}); };
  return pack<T>(body(number(pairs)...), body(number(pairs >> 16)...));
}
inline uint32_t subtract_f16x2(uint32_t a, uint32_t b) {
  return for_both<f16>([](float x, float y) { return x - y; }, a, b);
}
inline uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  return for_both<bf16>(emulation::fma_to_odd, a, b, c);
}

inline float flush(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.f, x) : x; }
inline float ex2(float x) { return flush(std::exp2(flush(x))); }

}  // namespace mqa::kernels::cuda
