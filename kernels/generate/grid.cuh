// A barrier over the grid, for cooperative launches: all blocks are there.
#pragma once
#include "generate/device.cuh"

#ifdef SPIKELET_SIMT
inline bool await_patiently(const u32 *counter, u32 until, u32 *) {
    simt::wait_for(counter, until, "a barrier over the grid");
    return true;
}
#else
__device__ __forceinline__ u32 load_acquire(const u32 *at) {
    u32 value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
    return value;
}
__device__ __forceinline__ u64 nanoseconds() {
    u64 time;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time));
    return time;
}

/// A block that is so late will never come.
constexpr u64 PATIENCE = 2000000000ull;

/// `await` that gives up, and says so in `stuck`, which makes the other blocks give up too.
__device__ __forceinline__ bool await_patiently(const u32 *counter, u32 until, u32 *stuck) {
    const u64 start = nanoseconds();
    for (u32 turn = 1; int(load_acquire(counter) - until) < 0; ++turn) {
        if (turn % 1024 == 0 && (load_acquire(stuck) || nanoseconds() - start > PATIENCE)) {
            *stuck = 1;
            return false;
        }
    }
    return true;
}
#endif

/// Waits for all blocks of a cooperative launch: `counter`, which only grows, comes to `until`, and may wrap. False if that
/// took too long: everybody leaves then, and the host finds `stuck`. All threads of the block come.
__device__ __forceinline__ bool grid_meet(u32 *counter, u32 until, u32 *stuck) {
    SHARED(u32, in_time, 1);
    __syncthreads();
    if (threadIdx.x == 0) {
        arrive(counter);
        *in_time = await_patiently(counter, until, stuck);
    }
    __syncthreads();
    return *in_time;
}
