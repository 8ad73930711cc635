// Writes one value everywhere: slots before their first token, and what tests want to find untouched.
#pragma once
#include "common.cuh"

constexpr u32 FILL_THREADS = 256;

struct Fill {
    float *to;
    u64 len;
    float value;
    u32 padding;
};

__device__ __forceinline__ void fill(const Fill &p) {
    for (u64 i = u64(blockIdx.x) * blockDim.x + threadIdx.x; i < p.len; i += u64(gridDim.x) * blockDim.x) {
        p.to[i] = p.value;
    }
}
