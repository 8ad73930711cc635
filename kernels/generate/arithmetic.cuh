// Elementwise arithmetic of generation, and the sums of a layer norm: operation by operation those of
// rust/simd/src/vecops.rs, so that logits and states have the bits of the CPU engine.
#pragma once
#include "generate/device.cuh"
#include "recurrence.cuh"

__device__ __forceinline__ float sigmoid_exact(float x) { return 1.0f / (1.0f + exp_exact(0.0f - x)); }

__device__ __forceinline__ float relu_squared(float x) {
    const float r = 0.0f > x ? 0.0f : x;
    return r * r;
}

/// The mix of `x` with that of the token before.
__device__ __forceinline__ float token_mix(float x, float before, float mu) {
    return fmaf(x, mu, before * (1.0f - mu));
}

/// A layer norm adds up channels in 16 lanes, lane l those of l, l + 16, .., and then the lanes by halves.
constexpr u32 NORM_LANES = 16;

/// What normalises a token.
struct NormStats {
    float mean, scale;

    __device__ __forceinline__ float apply(float x, float weight, float bias) const {
        return fmaf((x - mean) * scale, weight, bias);
    }
};

/// The sum over 16 lanes that lie side by side in a warp, the same in each. Addition commutes to the bit, so it does not
/// matter which of two lanes is added to which. The whole warp must come.
__device__ __forceinline__ float sum_norm_lanes(float v) {
#pragma unroll
    for (u32 half = NORM_LANES / 2; half > 0; half /= 2) v = v + __shfl_xor_sync(ALL_LANES, v, half);
    return v;
}

/// Goes over the channels of a lane in order. Each waits for the one before it, so those that follow are loaded early.
template <class Load, class Step>
__device__ __forceinline__ void norm_walk(u32 width, u32 lane, Load load, Step step) {
    constexpr u32 AT_ONCE = 12;
    u32 c = lane;
#pragma unroll 1
    for (; c + (AT_ONCE - 1) * NORM_LANES < width; c += AT_ONCE * NORM_LANES) {
        float x[AT_ONCE];
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; ++i) x[i] = load(c + i * NORM_LANES);
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; ++i) step(x[i]);
    }
#pragma unroll 1
    for (; c < width; c += NORM_LANES) step(load(c));
}

/// The statistics of a token whose channel `c` is `load(c)`. Two tokens to a warp, which must come whole; `lane` counts in
/// the half that works on this token.
template <class Load>
__device__ __forceinline__ NormStats norm_stats(u32 width, float epsilon, u32 lane, Load load) {
    const float count = float(width);
    float sum = 0.0f, squares = 0.0f;
    norm_walk(width, lane, load, [&](float x) { sum = sum + x; });
    const float mean = sum_norm_lanes(sum) / count;
    norm_walk(width, lane, load, [&](float x) {
        const float d = x - mean;
        squares = fmaf(d, d, squares);
    });
    return {mean, 1.0f / sqrtf(sum_norm_lanes(squares) / count + epsilon)};
}
