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

/// The statistics of a token whose channel `c` is `load(c)`. Two tokens to a warp, which must come whole; `lane` counts in
/// the half that works on this token.
template <class Load>
__device__ __forceinline__ NormStats norm_stats(u32 width, float epsilon, u32 lane, Load load) {
    const float count = float(width);
    float sum = 0.0f;
#pragma unroll 4
    for (u32 c = lane; c < width; c += NORM_LANES) sum = sum + load(c);
    const float mean = sum_norm_lanes(sum) / count;
    float squares = 0.0f;
#pragma unroll 4
    for (u32 c = lane; c < width; c += NORM_LANES) {
        const float d = load(c) - mean;
        squares = fmaf(d, d, squares);
    }
    return {mean, 1.0f / sqrtf(sum_norm_lanes(squares) / count + epsilon)};
}
