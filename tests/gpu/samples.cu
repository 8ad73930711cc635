// Kernels that try the emulator: right ones, and ones with the mistakes that it is there to find.
#include "common.cuh"

struct Samples {
    const float *in;
    float *out;
    u32 count;
};

/// The sum of each block's 64 elements: inside warps by shuffles, then over warps through shared memory.
__device__ void block_sum(const Samples &p) {
    SHARED(float, warps, 2);
    float sum = p.in[blockIdx.x * blockDim.x + threadIdx.x];
    for (u32 lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) p.out[blockIdx.x] = warps[0] + warps[1];
}

/// The same without its barrier.
__device__ void block_sum_racing(const Samples &p) {
    SHARED(float, warps, 2);
    float sum = p.in[blockIdx.x * blockDim.x + threadIdx.x];
    for (u32 lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
    if (threadIdx.x == 0) p.out[blockIdx.x] = warps[0] + warps[1];
}

/// Four results a thread: of the other shuffles, of the ballot, of warps that meet again.
__device__ void collectives(const Samples &p) {
    const float x = p.in[threadIdx.x];
    float *out = p.out + 4 * threadIdx.x;
    out[0] = __shfl_sync(~0u, x, 5);
    out[1] = __shfl_down_sync(~0u, x, 3);
    out[2] = float(__ballot_sync(~0u, x > 0.5f) >> 16);
    __syncwarp();
    out[3] = __shfl_xor_sync(~0u, out[0] + x, 1);
}

/// Each thread counts to `count` in memory of its own, unless the stride is too small.
template <u32 STRIDE>
__device__ void count_up(const Samples &p) {
    SHARED(float, counters, 64 * STRIDE);
    float *mine = counters + threadIdx.x * STRIDE;
    mine[0] = mine[1] = 0.0f;
    for (u32 i = 0; i < p.count; ++i) {
        INTERLEAVE();
        mine[1] = mine[0] + 1.0f;
        INTERLEAVE();
        mine[0] = mine[1];
    }
    p.out[threadIdx.x] = mine[0];
}

/// Half of the threads leave before a barrier.
__device__ void divergent_barrier(const Samples &p) {
    if (threadIdx.x < p.count) return;
    __syncthreads();
    p.out[0] = 0.0f;
}

/// Some lanes of a warp leave before the others ask them.
__device__ void lonely_shuffle(const Samples &p) {
    if (threadIdx.x < p.count) return;
    p.out[0] = __shfl_xor_sync(~0u, 1.0f, 1);
}

/// The first `count` lanes meet, and the last 16: right if `count` is 16.
__device__ void halves_of_a_warp(const Samples &p) {
    const bool first = threadIdx.x < p.count;
    const float x = p.in[threadIdx.x];
    p.out[threadIdx.x] = first ? __shfl_sync(0xffffu, x, 3) : __shfl_sync(0xffff0000u, x, 19);
}

/// Shared memory is read before anything was written there.
__device__ void unwritten_shared(const Samples &p) {
    SHARED(float, nothing, 4);
    p.out[0] = nothing[p.count];
}

/// One step beyond the end, where `count` says.
__device__ void beyond_shared(const Samples &p) {
    SHARED(float, few, 4);
    few[p.count] = 1.0f;
    p.out[0] = few[p.count];
}

__device__ void beyond_global(const Samples &p) { p.out[p.count] = p.in[0]; }

__device__ void shift_too_far(const Samples &p) { p.out[0] = float(1 << p.count); }

/// Each block's elements reversed, in memory whose size the launch says.
__device__ void reverse_block(const Samples &p) {
    DYNAMIC_SHARED(float, all);
    all[threadIdx.x] = p.in[blockIdx.x * blockDim.x + threadIdx.x];
    __syncthreads();
    p.out[blockIdx.x * blockDim.x + threadIdx.x] = all[blockDim.x - 1 - threadIdx.x];
}

/// `count` times, each element becomes the sum of all: every block waits for all others in between. In out are a counter
/// and a sum of each block, for rounds of even and of odd number.
__device__ void grid_sums(const Samples &p) {
    u32 *counter = reinterpret_cast<u32 *>(p.out);
    SHARED(float, values, 64);
    values[threadIdx.x] = p.in[blockIdx.x * blockDim.x + threadIdx.x];
    for (u32 i = 0; i < p.count; ++i) {
        float *sums = p.out + 1 + i % 2 * gridDim.x;
        __syncthreads();
        if (threadIdx.x == 0) {
            float sum = 0.0f;
            for (u32 j = 0; j < 64; ++j) sum += values[j];
            sums[blockIdx.x] = sum;
        }
        grid_barrier(counter, (i + 1) * gridDim.x);
        float sum = 0.0f;
        for (u32 j = 0; j < gridDim.x; ++j) sum += sums[j];
        __syncthreads();
        values[threadIdx.x] = sum;
    }
}

/// Waits for more blocks than there are.
__device__ void endless_grid(const Samples &p) {
    grid_barrier(reinterpret_cast<u32 *>(p.out), gridDim.x + 1);
}

/// Exact arithmetic on integers.
__device__ void integers(const Samples &p) {
    const u32 x = 0x80ff017fu, y = 0x7f02fe80u;  // 127 -128, 1 -2, -1 2, -128 127
    p.out[0] = float(__dp4a(int(x), int(y), 5));
    u32 *counter = reinterpret_cast<u32 *>(p.out + 1);
    atomicAdd(counter, 2u);
    __threadfence();
}

KERNEL(block_sum_64, 64, Samples, block_sum)
KERNEL(block_sum_racing_64, 64, Samples, block_sum_racing)
KERNEL(collectives_32, 32, Samples, collectives)
KERNEL(count_up_32, 32, Samples, count_up<2>)
KERNEL(count_up_overlapping_32, 32, Samples, count_up<1>)
KERNEL(divergent_barrier_64, 64, Samples, divergent_barrier)
KERNEL(lonely_shuffle_64, 64, Samples, lonely_shuffle)
KERNEL(halves_of_a_warp_32, 32, Samples, halves_of_a_warp)
KERNEL(unwritten_shared_1, 1, Samples, unwritten_shared)
KERNEL(beyond_shared_1, 1, Samples, beyond_shared)
KERNEL(beyond_global_1, 1, Samples, beyond_global)
KERNEL(shift_too_far_1, 1, Samples, shift_too_far)
KERNEL(reverse_block_64, 64, Samples, reverse_block)
KERNEL(grid_sums_64, 64, Samples, grid_sums)
KERNEL(endless_grid_64, 64, Samples, endless_grid)
KERNEL(integers_32, 32, Samples, integers)
