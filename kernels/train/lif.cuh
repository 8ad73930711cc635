// Leaky integrate-and-fire neurons: h = v + (x - v) decay, a spike where h >= 1, then v = 0 there and v = h elsewhere.
// The arithmetic is that of rust/simd/src/train/lif.rs, operation by operation.
#pragma once
#include "recurrence.cuh"
#include "train/columns.cuh"

/// What stands for the derivative of the step, by the number that the launcher passes.
enum Surrogate : u32 { ATAN, SIGMOID, FAST_SIGMOID };

/// The surrogate's value `z` above the threshold.
__device__ __forceinline__ float surrogate_slope(u32 kind, float alpha, float z) {
    if (kind == ATAN) {  // alpha / 2 / (1 + (pi / 2 alpha z)^2)
        const float a = 1.57079637f * alpha * z;
        return 0.5f * alpha / fmaf(a, a, 1.0f);
    }
    if (kind == SIGMOID) {  // alpha s (1 - s), s = sigmoid(alpha z)
        const float s = 1.0f / (1.0f + exp_exact(0.0f - alpha * z));
        return alpha * s * (1.0f - s);
    }
    const float root = fmaf(alpha, z < 0.0f ? 0.0f - z : z, 1.0f);  // 1 / (1 + alpha |z|)^2
    return 1.0f / (root * root);
}

template <class T>
struct LifForward {
    const T *x;               // [batch, time, channels]
    const float *membrane;    // [batch, channels]
    const float *decay;       // [channels]; null is 0.5 everywhere
    float *spikes;            // [batch, time, channels]
    float *membrane_out;      // [batch, channels]
    Dims dims;
};

template <class T>
__device__ __forceinline__ void lif_forward(const LifForward<T> &p) {
    const u32 index = blockIdx.x * WALKERS + threadIdx.x;
    if (index >= p.dims.columns()) return;
    const Column at(p.dims, index);
    const float decay = p.decay ? p.decay[at.channel] : 0.5f;
    float v = p.membrane[index];
    walk(
        p.dims.time, [&](u32 t) { return widen(p.x[at.token(t)]); },
        [&](u32 t, float x) {
            const float h = lif_charge(v, x, decay);
            p.spikes[at.token(t)] = h >= 1.0f ? 1.0f : 0.0f;
            v = lif_reset(h);
        });
    p.membrane_out[index] = v;
}

template <class T>
struct LifBackward {
    const T *x;                    // [batch, time, channels]
    const float *membrane;         // [batch, channels]
    const float *decay;            // [channels]; null is 0.5 everywhere
    const float *gspikes;          // [batch, time, channels]
    const float *gmembrane_out;    // [batch, channels]
    float *workspace;              // [chunks, batch * channels]
    T *gx;                         // [batch, time, channels]
    float *gmembrane;              // [batch, channels]
    float *gdecay;                 // [batch, channels], for sum_rows; null where decay is
    Dims dims;
    u32 surrogate;
    float alpha;
};

struct LifToken {
    float x, gspike;
};

template <class T>
__device__ __forceinline__ void lif_backward(const LifBackward<T> &p) {
    SHARED(float, shared, CHUNK * 3 * WALKERS);
    const u32 index = blockIdx.x * WALKERS + threadIdx.x;
    if (index >= p.dims.columns()) return;
    enum : u32 { H, INPUT, GSPIKE };
    const Kept<3> kept(shared);
    const Column at(p.dims, index);
    const float decay = p.decay ? p.decay[at.channel] : 0.5f;

    float v = p.membrane[index];
    walk(
        p.dims.time, [&](u32 t) { return widen(p.x[at.token(t)]); },
        [&](u32 t, float x) {
            if (t % CHUNK == 0) p.workspace[at.checkpoint(t / CHUNK, 0, 1)] = v;
            v = lif_reset(lif_charge(v, x, decay));
        });

    float gv = p.gmembrane_out[index], gdecay = 0.0f;
    walk_back(
        p.dims.time, [&](u32 t) { return LifToken{widen(p.x[at.token(t)]), p.gspikes[at.token(t)]}; },
        [&](u32 chunk) { v = p.workspace[at.checkpoint(chunk, 0, 1)]; },
        [&](u32 j, LifToken in) {
            kept(j, H) = lif_charge(v, in.x, decay);
            kept(j, INPUT) = in.x - v;
            kept(j, GSPIKE) = in.gspike;
            v = lif_reset(kept(j, H));
        },
        [&](u32 t, u32 j) {
            const float h = kept(j, H);
            const float slope = surrogate_slope(p.surrogate, p.alpha, h - 1.0f);
            // The reset v = h (1 - spike) is part of the graph: its spike has a gradient too.
            const float stays = (h >= 1.0f ? 0.0f : 1.0f) - h * slope;
            const float gh = fmaf(kept(j, GSPIKE), slope, gv * stays);
            gdecay = fmaf(gh, kept(j, INPUT), gdecay);
            gv = gh * (1.0f - decay);
            narrow(gh * decay, p.gx[at.token(t)]);
        });
    p.gmembrane[index] = gv;
    if (p.gdecay) p.gdecay[index] = gdecay;
}
