// Rows of any storage dtype, read into float or double and written back.
#pragma once

#include <cstdint>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "numeric.h"
#include "params.h"

namespace mqa::kernels {
namespace {  // internal linkage: every ISA that includes this compiles its own copy

struct Float64 {
  using Storage = double;
  MQA_HOST_DEVICE static double widen(double x) { return x; }
  MQA_HOST_DEVICE static double narrow(double x) { return x; }
};
struct Float32 {
  using Storage = float;
  MQA_HOST_DEVICE static float widen(float x) { return x; }
  MQA_HOST_DEVICE static float narrow(float x) { return x; }
};
struct BFloat16 {
  using Storage = uint16_t;
  MQA_HOST_DEVICE static float widen(uint16_t x) { return bfloat16_to_float(x); }
  MQA_HOST_DEVICE static uint16_t narrow(float x) { return float_to_bfloat16(x); }
};
struct Float16 {
  using Storage = uint16_t;
  MQA_HOST_DEVICE static float widen(uint16_t x) { return float16_to_float(x); }
  MQA_HOST_DEVICE static uint16_t narrow(float x) { return float_to_float16(x); }
};
struct Int8 {
  using Storage = int8_t;
  MQA_HOST_DEVICE static float widen(int8_t x) { return x; }
  MQA_HOST_DEVICE static int32_t code(float x) { return int8_code(x); }
  MQA_HOST_DEVICE static int8_t narrow(float x) { return float_to_int8(x); }
};
struct Float8E4M3 {
  using Storage = uint8_t;
  MQA_HOST_DEVICE static float widen(uint8_t x) { return float8_to_float(x); }
  MQA_HOST_DEVICE static int32_t code(float x) { return float8_code(x); }
  MQA_HOST_DEVICE static uint8_t narrow(float x) { return float_to_float8(x); }
};

// Calls body(format) with the format of a numeric dtype.
template <class Body>
inline void with_format(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kFloat64:
      return body(Float64{});
    case DType::kFloat32:
      return body(Float32{});
    case DType::kBFloat16:
      return body(BFloat16{});
    case DType::kFloat16:
      return body(Float16{});
    case DType::kInt8:
      return body(Int8{});
    case DType::kFloat8E4M3:
      return body(Float8E4M3{});
    case DType::kBool:
      return;
  }
}

// to[i] = from[i], widened
template <class Format, class Acc>
inline void widen_row(Format, const typename Format::Storage* __restrict from, int64_t width,
                      Acc* __restrict to) {
  for (int64_t i = 0; i < width; ++i) to[i] = static_cast<Acc>(Format::widen(from[i]));
}

// to[i] = from[i], rounded
template <class Format, class Acc>
inline void narrow_row(Format, const Acc* __restrict from, int64_t width,
                       typename Format::Storage* __restrict to) {
  for (int64_t i = 0; i < width; ++i) to[i] = Format::narrow(from[i]);
}

#if defined(__F16C__)
inline void widen_row(Float16, const uint16_t* from, int64_t width, float* to) {
  int64_t i = 0;
  for (; i + 8 <= width; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(halves));
  }
  for (; i < width; ++i) to[i] = float16_to_float(from[i]);
}

inline void narrow_row(Float16, const float* from, int64_t width, uint16_t* to) {
  int64_t i = 0;
  for (; i + 8 <= width; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), halves);
  }
  for (; i < width; ++i) to[i] = float_to_float16(from[i]);
}
#endif

// to[i] = scale * data[offset + i]
template <class Acc>
inline void load_row(DType dtype, const void* data, int64_t offset, int64_t width, float scale,
                     Acc* to) {
  with_format(dtype, [&](auto format) {
    const auto* from = static_cast<const typename decltype(format)::Storage*>(data) + offset;
    for (int64_t i = 0; i < width; ++i) to[i] = static_cast<Acc>(format.widen(from[i])) * scale;
  });
}

// data[offset + i] = factor * from[i]
template <class Acc>
inline void store_row(DType dtype, void* data, int64_t offset, int64_t width, Acc factor,
                      const Acc* from) {
  with_format(dtype, [&](auto format) {
    auto* to = static_cast<typename decltype(format)::Storage*>(data) + offset;
    for (int64_t i = 0; i < width; ++i) to[i] = format.narrow(from[i] * factor);
  });
}

}  // namespace
}  // namespace mqa::kernels
