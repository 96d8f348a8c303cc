// Keys and values as caches store them, and vectors of them.
#pragma once

#include <algorithm>
#include <cstring>

#include "../formats.h"
#include "transpose.h"

namespace mqa::kernels::cpu {
namespace {

struct BFloat16Bits {
  uint16_t bits;
};
struct Float16Bits {
  uint16_t bits;
};
struct Int8Bits {
  int8_t bits;
};
struct Float8Bits {
  uint8_t bits;
};

template <class Stored>
constexpr DType kDTypeOf = DType::kFloat64;
template <>
constexpr DType kDTypeOf<float> = DType::kFloat32;
template <>
constexpr DType kDTypeOf<BFloat16Bits> = DType::kBFloat16;
template <>
constexpr DType kDTypeOf<Float16Bits> = DType::kFloat16;
template <>
constexpr DType kDTypeOf<Int8Bits> = DType::kInt8;
template <>
constexpr DType kDTypeOf<Float8Bits> = DType::kFloat8E4M3;

// As many values as Vector<float> has lanes.
template <class Stored>
using StoredLanes = Bytes<static_cast<int>(sizeof(Stored)) * kLanes<float>>;

inline Vector<float> widen(StoredLanes<BFloat16Bits> x, BFloat16Bits) {
  return (Vector<float>)(widened((HalfVector)x) << 16);
}

inline Vector<float> widen(StoredLanes<Float16Bits> x, Float16Bits) {
#if defined(__AVX512F__)
  return (Vector<float>)_mm512_cvtph_ps((__m256i)x);
#elif defined(__F16C__)
  return (Vector<float>)_mm256_cvtph_ps((__m128i)x);
#else
  const auto halves = (HalfVector)x;
  Vector<float> floats;
  for (int i = 0; i < kLanes<float>; ++i) floats[i] = float16_to_float(halves[i]);
  return floats;
#endif
}

#if defined(__AVX512F__)
inline Vector<int32_t> signed_codes(Bytes<16> x) {
  return (Vector<int32_t>)_mm512_cvtepi8_epi32((__m128i)x);
}
#elif defined(__AVX2__)
inline Vector<int32_t> signed_codes(Bytes<8> x) {
  return (Vector<int32_t>)_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(x[0]));
}
#endif

#if defined(__AVX2__)
inline Vector<float> widen(StoredLanes<Int8Bits> x, Int8Bits) {
  return __builtin_convertvector(signed_codes(x), Vector<float>);
}

// As float8_to_float does.
inline Vector<float> widen(StoredLanes<Float8Bits> x, Float8Bits) {
  const Vector<int32_t> codes = signed_codes(x), magnitude = codes & 0x7f;
  const auto finite = (Vector<int32_t>)((Vector<float>)(magnitude << 20) * 0x1p120f);
  return (Vector<float>)((magnitude == 0x7f ? 0x7fc00000 : finite) | (codes & INT32_MIN));
}
#endif

#if defined(__AVX512BF16__)

// bfloat16 holds codes of 8 bits exactly; times a scale they are rounded.

// What codes without their sign stand for, all 128 of them.
struct Float8Table {
  uint16_t bits[128];
  constexpr Float8Table() : bits() {
    constexpr uint16_t kSubnormal[] = {0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60};
    for (int i = 0; i < 128; ++i) bits[i] = i < 8 ? kSubnormal[i] : (i << 4) + 0x3c00;
    bits[127] = 0x7fc0;  // NaN
  }
};
alignas(64) constexpr Float8Table kFloat8Table;

// Of codes in 16 bits, signed.
inline __m512i bfloat16_of_float8(__m512i codes) {
  const auto quarter = [](int i) { return _mm512_load_si512(kFloat8Table.bits + 32 * i); };
  // The lower 6 bits choose from half a table, the seventh one of the halves.
  const __m512i lower = _mm512_permutex2var_epi16(quarter(0), codes, quarter(1)),
                upper = _mm512_permutex2var_epi16(quarter(2), codes, quarter(3));
  const __mmask32 in_upper = _mm512_test_epi16_mask(codes, _mm512_set1_epi16(0x40));
  const __m512i magnitude = _mm512_mask_mov_epi16(lower, in_upper, upper);
  return _mm512_or_si512(magnitude, _mm512_and_si512(codes, _mm512_set1_epi16(INT16_MIN)));
}

struct Floats {
  __m512 low, high;
};

// 32 values from kRuns addresses.
template <int kRuns>
inline __m512i bfloat16_of_runs(const void* const* from, BFloat16Bits) {
  return (__m512i)load_runs<64, kRuns>(from);
}
template <int kRuns>
inline __m512i bfloat16_of_runs(const void* const* from, Float8Bits) {
  return bfloat16_of_float8(_mm512_cvtepi8_epi16((__m256i)load_runs<32, kRuns>(from)));
}
template <int kRuns>
inline __m512i bfloat16_of_runs(const void* const* from, Int8Bits codes) {
  if constexpr (kRuns == 1) {
    const void* halves[] = {*from, static_cast<const char*>(*from) + 16};
    return bfloat16_of_runs<2>(halves, codes);
  } else {
    const Vector<float> low = widen(load_runs<16, kRuns / 2>(from), codes),
                        high = widen(load_runs<16, kRuns / 2>(from + kRuns / 2), codes);
    return (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
  }
}

// 16 values; 32 values.
inline __m512 float_at(const Int8Bits* from) {
  return (__m512)widen((Bytes<16>)_mm_loadu_si128((const __m128i*)from), Int8Bits());
}
inline Floats floats_at(const Int8Bits* from) { return {float_at(from), float_at(from + 16)}; }
inline __m256i bfloat16_half_at(const Int8Bits* from) {
  return (__m256i)_mm512_cvtneps_pbh(float_at(from));
}

inline __m256i bfloat16_half_at(const Float8Bits* from) {
  const __m256i codes = _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i*)from));
  return _mm512_castsi512_si256(bfloat16_of_float8(_mm512_cvtepi8_epi16(codes)));
}
inline __m512 float_of_bfloat16(__m256i x) { return (__m512)widen((Bytes<32>)x, BFloat16Bits()); }
inline __m512 float_at(const Float8Bits* from) { return float_of_bfloat16(bfloat16_half_at(from)); }
inline Floats floats_at(const Float8Bits* from) {
  const void* address = from;
  const __m512i x = bfloat16_of_runs<1>(&address, Float8Bits());
  return {float_of_bfloat16(_mm512_castsi512_si256(x)),
          float_of_bfloat16(_mm512_extracti64x4_epi64(x, 1))};
}

template <class Code>
inline __m512i bfloat16_at(const Code* from, const float* scale) {
  const __m512 factor = _mm512_set1_ps(*scale);
  const Floats x = floats_at(from);
  return (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(x.high, factor), _mm512_mul_ps(x.low, factor));
}
template <class Code>
inline __m256i bfloat16_half_at(const Code* from, const float* scale) {
  return (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(float_at(from), _mm512_set1_ps(*scale)));
}

// What is bfloat16 already has no scale.
inline __m512i bfloat16_at(const BFloat16Bits* from, const float* = nullptr) {
  return _mm512_loadu_si512(from);
}
inline __m256i bfloat16_half_at(const BFloat16Bits* from, const float* = nullptr) {
  return _mm256_loadu_si256((const __m256i*)from);
}

// to[i] = scale * from[i] as bfloat16; without a scale, null, from[i].
template <class Code>
inline void narrow_codes(const Code* from, int64_t width, const float* scale, BFloat16Bits* to) {
  constexpr int64_t kHalf = 16;
  const auto half_at = [&](const Code* codes) {
    return scale ? bfloat16_half_at(codes, scale) : bfloat16_half_at(codes);
  };
  int64_t i = 0;
  for (; i + kHalf <= width; i += kHalf) _mm256_storeu_si256((__m256i*)(to + i), half_at(from + i));
  if (i < width) {
    Code rest[kHalf] = {};
    std::copy(from + i, from + width, rest);
    const __m256i half = half_at(rest);
    std::memcpy(to + i, &half, (width - i) * sizeof *to);
  }
}

#endif

}  // namespace
}  // namespace mqa::kernels::cpu
