// Activations as integers, for products with integer weights: a block of 64 by a warp, two inputs to a lane.
// The definition, and the order of operations, are those of rust/simd/src/qtile.rs.
#pragma once
#include "generate/device.cuh"

struct EncodedPair {
    /// Of inputs `lane` and `lane + 32`.
    signed char low, high;
    /// A code stands for this much; the same in all lanes. NaN if an input is not finite, so that it reaches the outputs.
    float scale;
};

__device__ __forceinline__ signed char encode_one(float x, float factor) {
    float v = x * factor;
    v = v > -127.0f ? v : -127.0f;  // NaN too
    v = v > 127.0f ? 127.0f : v;
    // Adding 1.5 * 2^23 leaves the nearest integer, ties to even, in the low bits.
    return static_cast<signed char>(__float_as_uint(v + 12582912.0f) & 0xffu);
}

/// All lanes of the warp must come.
__device__ __forceinline__ EncodedPair encode_block(float low, float high) {
    const float largest = 3.40282347e38f, a = low < 0.0f ? 0.0f - low : low, b = high < 0.0f ? 0.0f - high : high;
    float amax = a > b ? a : b;
#pragma unroll
    for (u32 half = WARP_LANES / 2; half > 0; half /= 2) {
        const float other = __shfl_xor_sync(ALL_LANES, amax, half);
        amax = amax > other ? amax : other;
    }
    const bool bad = __ballot_sync(ALL_LANES, !(a <= largest) || !(b <= largest)) != 0;
    // The smallest magnitudes have no reciprocal in f32; such a block is zero beside everything else. 2^-126 * 256 = 2^-118.
    const float factor = amax >= 3.00926554e-36f ? 127.0f / amax : 0.0f;
    const float scale = factor > 0.0f ? amax / 127.0f : 0.0f;
    return {encode_one(low, factor), encode_one(high, factor), bad ? __uint_as_float(0x7fc00000u) : scale};
}
