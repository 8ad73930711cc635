// What every kernel shares: entries, integer and bfloat16 types, exp with the bits of the CPU engine.
//
// Kernels include nothing of CUDA: NVRTC compiles them with no include path at all, and the same files run on the CPU
// under simt/simt.h. Arithmetic is compiled without contraction (--fmad=false, -ffp-contract=off): an operation is fused
// where fmaf says so and nowhere else, so a result has the same bits on every device and under the emulator.
#pragma once

#ifdef SPIKELET_SIMT
#include "simt/simt.h"
#else
/// A kernel is a device function of one struct; `threads` is the size of its block.
#define KERNEL(name, threads, Params, function) \
    extern "C" __global__ void __launch_bounds__(threads) name(const Params params) { function(params); }
/// An array in the memory that a block shares, unwritten at first.
#define SHARED(type, name, count) __shared__ type name[count]
/// The array in that memory whose size is said at the launch.
#define DYNAMIC_SHARED(type, name)                                    \
    extern __shared__ __align__(128) unsigned char dynamic_shared[]; \
    type *const name = reinterpret_cast<type *>(dynamic_shared)
/// Here the emulator may let other threads go on; stands where threads could meet in memory without waiting.
#define INTERLEAVE()
#endif

using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

/// A bfloat16, the upper half of a float.
struct bf16 {
    u16 bits;
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }

__device__ __forceinline__ void narrow(float x, float &to) { to = x; }
/// To the nearest, ties to even; NaN stays NaN.
__device__ __forceinline__ void narrow(float x, bf16 &to) {
    const u32 bits = __float_as_uint(x);
    const u32 rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    to.bits = x != x ? u16(0x7fc0) : u16(rounded >> 16);
}

/// exp within one unit in the last place or so: 0 below -87.33, infinite above 88.72284, NaN for NaN.
/// Operation by operation that of rust/simd/src/vecops.rs, where the polynomial is explained.
__device__ __forceinline__ float exp_exact(float x) {
    const float magic_number = 12582912.0f;
    const float magic = fmaf(x, 1.44269504f, magic_number);
    const float n = magic - magic_number;
    const float r = fmaf(n, 2.1219444e-4f, fmaf(n, -0.6933594f, x));
    float q = 0.001381432f;
    q = fmaf(q, r, 0.008368851f);
    q = fmaf(q, r, 0.0416684f);
    q = fmaf(q, r, 0.1666652f);
    q = fmaf(q, r, 0.49999994f);
    const float p = 1.0f + fmaf(r * r, q, r);
    const float y = __uint_as_float(__float_as_uint(p) + (__float_as_uint(magic) << 23));
    if (x != x) return x;
    if (x < -87.33f) return 0.0f;
    return x > 88.72284f ? __uint_as_float(0x7f800000u) : y;
}

/// Adds 1 to a counter that other blocks wait for; they then see all that this thread has written or has seen written.
__device__ __forceinline__ void arrive(u32 *counter) {
#ifdef SPIKELET_SIMT
    ++*counter;
#else
    asm volatile("fence.acq_rel.gpu;\n\tred.release.gpu.global.add.u32 [%0], %1;" ::"l"(counter), "r"(1u) : "memory");
#endif
}

/// Waits until a counter, which may wrap, has come to `target`.
__device__ __forceinline__ void await(const u32 *counter, u32 target) {
#ifdef SPIKELET_SIMT
    simt::wait_for(counter, target, "a counter");
#else
    u32 seen;
    do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
    } while (int(seen - target) < 0);
#endif
}

/// All blocks of a cooperative launch wait for one another: `counter` grows by gridDim.x each time, to `target`.
__device__ __forceinline__ void grid_barrier(u32 *counter, u32 target) {
    __syncthreads();
    if (threadIdx.x == 0) {
        arrive(counter);
        await(counter, target);
    }
    __syncthreads();
}
