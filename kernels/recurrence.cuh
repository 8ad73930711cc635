// One token of the recurrences over time, for one channel: what kernels of training and of generation share.
// The arithmetic is that of rust/simd/src/recurrence.rs and rust/simd/src/train, operation by operation.
#pragma once
#include "common.cuh"

/// The running sums of WKV-4: aa exp(pp) and bb exp(pp) are those of the paper.
struct WkvState {
    float aa, bb, pp;
};

/// exp(a - m) and exp(b - m) for m = max(a, b): one of the two is 1, so one exp will do.
struct ExpPair {
    float a, b;

    __device__ __forceinline__ ExpPair(float x, float y) {
        const float xy = x - y, yx = y - x;
        const float small = exp_exact(0.0f - (xy > yx ? xy : yx));
        a = x >= y ? 1.0f : small;
        b = x >= y ? small : 1.0f;
    }
};

/// The weighted mean of the values so far, this token's with the bonus `u`.
__device__ __forceinline__ float wkv4_read(const WkvState &s, float u, float k, float v) {
    const ExpPair e(s.pp, u + k);
    return fmaf(e.a, s.aa, e.b * v) / fmaf(e.a, s.bb, e.b);
}

__device__ __forceinline__ void wkv4_advance(WkvState &s, float w, float k, float v) {
    const float decayed = s.pp + w;
    const ExpPair d(decayed, k);
    s.aa = fmaf(d.a, s.aa, d.b * v);
    s.bb = fmaf(d.a, s.bb, d.b);
    s.pp = decayed > k ? decayed : k;
}

/// The membrane after the input, before it may fire: at 1 or above it does.
__device__ __forceinline__ float lif_charge(float v, float x, float decay) { return v + (x - v) * decay; }

/// What is left after a spike: nothing.
__device__ __forceinline__ float lif_reset(float h) { return h >= 1.0f ? 0.0f : h; }
