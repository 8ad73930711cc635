// What a card gives: kernels that do one thing as fast as it goes. Compiled where they run (`limits.py`).
#include "common.cuh"
#include "generate/wide/integers.cuh"

namespace {

constexpr u32 THREADS = 256;
/// Chains of each thread, so that the next operation need not wait for the last.
constexpr u32 CHAINS = 8;

struct alignas(16) Words {
    u32 a, b, c, d;
};

struct Fill {
    Words *to;
    u64 count;
};
/// Numbers without a pattern: memory of zeros is read faster than others.
__device__ void fill(const Fill &p) {
    for (u64 i = u64(blockIdx.x) * THREADS + threadIdx.x; i < p.count; i += u64(gridDim.x) * THREADS) {
        const u32 x = u32(i) * 2654435761u;
        p.to[i] = Words{x, x ^ (x >> 15), x * 747796405u, x + 2891336453u};
    }
}

struct Read {
    const Words *from;
    u64 count;
    u32 *to;
};
/// Reads all once, 16 bytes at a time, four of them on their way.
__device__ void read(const Read &p) {
    const u64 step = u64(gridDim.x) * THREADS;
    u32 sum = 0;
    u64 i = u64(blockIdx.x) * THREADS + threadIdx.x;
    for (; i + 3 * step < p.count; i += 4 * step) {
        const Words x = p.from[i], y = p.from[i + step], z = p.from[i + 2 * step], w = p.from[i + 3 * step];
        sum += (x.a ^ x.b ^ x.c ^ x.d) + (y.a ^ y.b ^ y.c ^ y.d);
        sum += (z.a ^ z.b ^ z.c ^ z.d) + (w.a ^ w.b ^ w.c ^ w.d);
    }
    for (; i < p.count; i += step) {
        const Words x = p.from[i];
        sum += x.a ^ x.b ^ x.c ^ x.d;
    }
    // Never so, but the compiler cannot know it.
    if (sum == 0x9e3779b9u && p.count == 1) *p.to = sum;
}

struct Nothing {
    u32 *to;
};
__device__ void nothing(const Nothing &p) {
    if (p.to == nullptr && gridDim.x == 0) __syncthreads();
}

struct Work {
    u32 *to;
    u32 rounds;
    float factor;
};
__device__ void multiply_add(const Work &p) {
    float x[CHAINS];
#pragma unroll
    for (u32 j = 0; j < CHAINS; ++j) x[j] = float(threadIdx.x + j);
    for (u32 i = 0; i < p.rounds; ++i) {
#pragma unroll
        for (u32 j = 0; j < CHAINS; ++j) x[j] = fmaf(x[j], p.factor, 1.0f);
    }
    float sum = 0;
#pragma unroll
    for (u32 j = 0; j < CHAINS; ++j) sum += x[j];
    if (sum == -1.0f) *p.to = 1;
}

__device__ void dot(const Work &p) {
    int x[CHAINS];
#pragma unroll
    for (u32 j = 0; j < CHAINS; ++j) x[j] = int(threadIdx.x + j);
    const u32 other = __float_as_uint(p.factor);
    for (u32 i = 0; i < p.rounds; ++i) {
#pragma unroll
        for (u32 j = 0; j < CHAINS; ++j) x[j] = dot4(u32(x[j]), other, x[j]);
    }
    int sum = 0;
#pragma unroll
    for (u32 j = 0; j < CHAINS; ++j) sum += x[j];
    if (sum == -1) *p.to = 1;
}

/// Products of 16 by 32 with 32 by 8 bytes, a warp each.
__device__ void tensor(const Work &p) {
    int sums[CHAINS][4] = {};
    const u32 a = threadIdx.x * 0x01010101u, b = __float_as_uint(p.factor);
    for (u32 i = 0; i < p.rounds; ++i) {
#pragma unroll
        for (u32 j = 0; j < CHAINS; ++j) multiply_bytes(sums[j], a, a + i, a + j, a ^ i, b, b + i);
    }
    int sum = 0;
#pragma unroll
    for (u32 j = 0; j < CHAINS; ++j) sum += sums[j][0] + sums[j][1] + sums[j][2] + sums[j][3];
    if (sum == -1) *p.to = 1;
}

struct Barrier {
    u32 *counter;  // 0 before the launch
    u32 rounds;
};
/// All blocks wait for all, so many times: the counter only grows.
__device__ void barrier(const Barrier &p) {
    for (u32 i = 1; i <= p.rounds; ++i) grid_barrier(p.counter, i * gridDim.x);
}

}  // namespace

KERNEL(probe_fill, THREADS, Fill, fill)
KERNEL(probe_read, THREADS, Read, read)
KERNEL(probe_nothing, THREADS, Nothing, nothing)
KERNEL(probe_multiply_add, THREADS, Work, multiply_add)
KERNEL(probe_dot, THREADS, Work, dot)
KERNEL(probe_tensor, THREADS, Work, tensor)
KERNEL(probe_barrier, THREADS, Barrier, barrier)
