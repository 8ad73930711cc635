// What kernels of generation ask of the hardware: wide loads, products of bytes, half floats. Each with a twin for the
// emulator.
#pragma once
#include "common.cuh"

using u8 = unsigned char;

constexpr u32 WARP_LANES = 32;
constexpr u32 ALL_LANES = ~0u;

/// 16 bytes: what one load brings.
struct alignas(16) Bytes16 {
    u32 x, y, z, w;
};

struct alignas(16) Float4 {
    float x, y, z, w;
};

#ifdef SPIKELET_SIMT
/// Of memory that no kernel writes, and that is read once: it takes no room in the first level cache.
inline Bytes16 load_stream(const void *at) { return *static_cast<const Bytes16 *>(at); }
inline u16 load_stream_u16(const void *at) { return *static_cast<const u16 *>(at); }
/// Asks the second level cache for the line at an address that may be null, or beyond the end of what is there.
inline void prefetch_line(const void *) {}
/// Of memory that other blocks of this launch may have written before a barrier over the grid.
template <class T>
inline T load_shared_by_grid(const T *at) {
    return *at;
}
/// `sum` plus the products of four pairs of signed bytes.
inline int dot4(u32 a, u32 b, int sum) { return __dp4a(int(a), int(b), sum); }
inline u32 count_bits(u64 mask) { return u32(__builtin_popcountll(mask)); }
/// Exact, subnormals included, as in rust/simd/src/convert.rs.
inline float widen_f16(u32 bits) {
    const u32 magnitude = bits & 0x7fffu;
    const float scaled = __uint_as_float(magnitude << 13) * __uint_as_float((254u - 15u) << 23);
    const u32 value = magnitude >= 0x7c00u ? 0x7f800000u | magnitude << 13 : __float_as_uint(scaled);
    return __uint_as_float((bits & 0x8000u) << 16 | value);
}
#else
__device__ __forceinline__ Bytes16 load_stream(const void *at) {
    Bytes16 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(at));
    return v;
}
__device__ __forceinline__ u16 load_stream_u16(const void *at) {
    u16 v;
    asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(v) : "l"(at));
    return v;
}
__device__ __forceinline__ void prefetch_line(const void *at) {
    if (at) asm volatile("prefetch.global.L2 [%0];" : : "l"(at));
}
__device__ __forceinline__ float load_shared_by_grid(const float *at) {
    float v;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(v) : "l"(at) : "memory");
    return v;
}
__device__ __forceinline__ int dot4(u32 a, u32 b, int sum) {
    int result;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(sum));
    return result;
}
__device__ __forceinline__ u32 count_bits(u64 mask) { return u32(__popcll(mask)); }
__device__ __forceinline__ float widen_f16(u32 bits) {
    float x;
    asm("{ .reg .b16 h; cvt.u16.u32 h, %1; cvt.f32.f16 %0, h; }" : "=f"(x) : "r"(bits));
    return x;
}
#endif
