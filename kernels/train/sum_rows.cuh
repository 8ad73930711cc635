// Sums over the rows of [groups, rows, columns], in an order that depends on nothing but the shape.
#pragma once
#include "common.cuh"

constexpr u32 SUM_COLUMNS = 32;
constexpr u32 SUM_LANES = 8;

struct SumRows {
    const float *in;    // [groups, rows, columns]
    float *out;         // [groups, columns]
    u32 rows, columns;
};

/// Lane l of a column adds rows l, l + 8, ... in double; then the lanes are added in order.
__device__ __forceinline__ void sum_rows(const SumRows &p) {
    SHARED(double, parts, SUM_LANES * SUM_COLUMNS);
    const u32 lane = threadIdx.x / SUM_COLUMNS;
    const u32 column = blockIdx.x * SUM_COLUMNS + threadIdx.x % SUM_COLUMNS;
    const u64 group = u64(blockIdx.y) * p.rows;
    double sum = 0.0;
    if (column < p.columns) {
#pragma unroll 8
        for (u32 row = lane; row < p.rows; row += SUM_LANES) sum += double(p.in[(group + row) * p.columns + column]);
    }
    parts[threadIdx.x] = sum;
    __syncthreads();
    if (lane > 0 || column >= p.columns) return;
    sum = parts[threadIdx.x];
    for (u32 l = 1; l < SUM_LANES; ++l) sum += parts[l * SUM_COLUMNS + threadIdx.x];
    p.out[u64(blockIdx.y) * p.columns + column] = float(sum);
}
