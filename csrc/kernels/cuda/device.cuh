// The only file of the kernels that knows CUDA. Kernels use these names and nothing else of it, so
// the same kernel source compiles with nvcc (this file) and with a host compiler, which runs it in
// an emulation (test/emulation/device_emulation.h).
//
// Rules for kernels:
//  - shared memory is dynamic_smem(), accessed by smem_load, smem_store, cp_async_* and ldmatrix_*;
//  - global memory is accessed by load and store, so that alignment is checked;
//  - primitives of a whole warp are reached by all 32 lanes from the same line.
#pragma once

#include <math.h>

#include <cstdint>

#include "stream.h"

namespace mqa::kernels::cuda {

struct bf16 {  // storage only; arithmetic is in float
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};
struct alignas(8) Words2 {
  uint32_t x, y;
};
struct alignas(16) Words4 {
  uint32_t x, y, z, w;
};

}  // namespace mqa::kernels::cuda

#ifndef __CUDACC__
#include "device_emulation.h"
#else

#define KERNEL(threads) __global__ void __launch_bounds__(threads, 1)
#define GRID_CONSTANT __grid_constant__
#define DEVICE __device__ __forceinline__

namespace mqa::kernels::cuda {

using ::float2;
using ::float4;

// ---- host side ---------------------------------------------------------------------------------

// Starts kernel(arguments...) on `blocks` blocks. `dependent`, for compute capability 9.0 and up:
// while the kernel before it in the stream still runs, for kernels that begin with
// wait_for_previous_kernel.
template <class... P>
Status launch(void (*kernel)(P...), int64_t blocks, int threads, int smem_bytes, Stream stream,
              bool dependent, const P&... arguments) {
  if (blocks == 0) return cudaSuccess;
  if (smem_bytes > 48 * 1024) {
    const Status status =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, smem_bytes);
    if (status != cudaSuccess) return status;
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = smem_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = dependent ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, P(arguments)...);
}

// ---- where a thread is
// ---------------------------------------------------------------------------

DEVICE int thread_index() { return threadIdx.x; }
DEVICE int lane_index() { return threadIdx.x & 31; }
DEVICE int warp_index() { return threadIdx.x >> 5; }
DEVICE int block_index() { return blockIdx.x; }

// ---- barriers, shuffles, votes
// -------------------------------------------------------------------

DEVICE void sync_block() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }

template <class T>
DEVICE T shfl(T v, int lane) {
  return __shfl_sync(~0u, v, lane);
}
template <class T>
DEVICE T shfl_xor(T v, int lanes) {
  return __shfl_xor_sync(~0u, v, lanes);
}
DEVICE bool vote_any(bool p) { return __any_sync(~0u, p); }

// Until everything that the kernel before this one in the stream wrote is visible.
DEVICE void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif  // elsewhere a kernel starts only after the one before it
}

// ---- memory
// --------------------------------------------------------------------------------------

template <class T>
DEVICE T load(const void* p) {
  return *static_cast<const T*>(p);
}
template <class T>
DEVICE void store(void* p, T v) {
  *static_cast<T*>(p) = v;
}

DEVICE unsigned char* dynamic_smem() {
  extern __shared__ __align__(128) unsigned char buffer[];
  return buffer;
}
DEVICE uint32_t smem_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
template <class T>
DEVICE T smem_load(const void* p) {
  return *static_cast<const T*>(p);
}
template <class T>
DEVICE void smem_store(void* p, T v) {
  *static_cast<T*>(p) = v;
}

// 16 or 4 bytes to shared memory, complete after the cp_async_wait that covers them.
// valid == false writes zeros and reads nothing.
DEVICE void cp_async_16(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(valid ? 16 : 0));
}
DEVICE void cp_async_4(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from),
               "r"(valid ? 4 : 0));
}
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;"); }
template <int kPending>
DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- tensor cores
// --------------------------------------------------------------------------------

// Four 8x8 matrices of 16-bit values; lane i gives the address of row i % 8 of matrix i / 8.
DEVICE void ldmatrix_x4(uint32_t (&r)[4], uint32_t row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row_address)
               : "memory");
}
DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row_address)
               : "memory");
}

// c += a * b: a is 16x16 row major, b 16x8, c 16x8 in float.
template <class T>
DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
DEVICE void mma<bf16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
DEVICE void mma<f16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- arithmetic
// ----------------------------------------------------------------------------------

// Two floats to one register of 16-bit values, `low` in the low half. Rounds to nearest even.
template <class T>
DEVICE uint32_t pack(float low, float high);
template <>
DEVICE uint32_t pack<bf16>(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
template <>
DEVICE uint32_t pack<f16>(float low, float high) {
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
template <class T>
DEVICE T narrow(float x) {
  return T{static_cast<uint16_t>(pack<T>(x, 0))};
}
template <>
DEVICE float narrow<float>(float x) {
  return x;
}
DEVICE float to_float(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
DEVICE float to_float(f16 x) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x.bits));
  return r;
}
DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }
DEVICE uint32_t as_bits(float x) { return __float_as_uint(x); }

// Byte i of the result is byte (selector >> 4 i) & 7 of the eight bytes b:a (a the low ones).
DEVICE uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  return __byte_perm(a, b, selector);
}
// Pairs of 16-bit numbers; the second rounds once, subnormal numbers included.
DEVICE uint32_t subtract_f16x2(uint32_t a, uint32_t b) {
  uint32_t r;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}

DEVICE uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {  // a * b + c
  uint32_t r;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}

DEVICE float ex2(float x) {  // 2^x
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace mqa::kernels::cuda
#endif
