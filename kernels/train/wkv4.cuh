// WKV-4, forward and backward (RWKV, Peng et al. 2023, eq. 14; numerically stable form of appendix D).
// The arithmetic is that of rust/simd/src/train/wkv.rs, operation by operation.
#pragma once
#include "recurrence.cuh"
#include "train/columns.cuh"

__device__ __forceinline__ WkvState wkv4_load_state(const float *state, const Column &at) {
    return {state[at.state(0)], state[at.state(1)], state[at.state(2)]};
}

struct KeyValue {
    float k, v;
};

template <class T>
struct Wkv4Forward {
    const float *w, *u;    // [channels]
    const T *k, *v;        // [batch, time, channels]
    const float *state;    // [batch, 3, channels]: aa, bb, pp
    float *y;              // [batch, time, channels]
    float *state_out;      // [batch, 3, channels]
    Dims dims;
};

template <class T>
__device__ __forceinline__ void wkv4_forward(const Wkv4Forward<T> &p) {
    const u32 index = blockIdx.x * WALKERS + threadIdx.x;
    if (index >= p.dims.columns()) return;
    const Column at(p.dims, index);
    const float w = p.w[at.channel], u = p.u[at.channel];
    WkvState s = wkv4_load_state(p.state, at);
    walk(
        p.dims.time, [&](u32 t) { return KeyValue{widen(p.k[at.token(t)]), widen(p.v[at.token(t)])}; },
        [&](u32 t, KeyValue in) {
            p.y[at.token(t)] = wkv4_read(s, u, in.k, in.v);
            wkv4_advance(s, w, in.k, in.v);
        });
    p.state_out[at.state(0)] = s.aa;
    p.state_out[at.state(1)] = s.bb;
    p.state_out[at.state(2)] = s.pp;
}

template <class T>
struct Wkv4Backward {
    const float *w, *u;         // [channels]
    const T *k, *v;             // [batch, time, channels]
    const float *state;         // [batch, 3, channels]
    const float *gy;            // [batch, time, channels]
    const float *gstate_out;    // [batch, 3, channels]; the pp part is ignored
    float *workspace;           // [chunks, 3, batch * channels]
    float *gw, *gu;             // [batch, channels], for sum_rows
    T *gk, *gv;                 // [batch, time, channels]
    float *gstate;              // [batch, 3, channels]; the pp part is zero
    Dims dims;
};

struct Wkv4Token {
    float k, v, gy;
};

template <class T>
__device__ __forceinline__ void wkv4_backward(const Wkv4Backward<T> &p) {
    SHARED(float, shared, CHUNK * 6 * WALKERS);
    const u32 index = blockIdx.x * WALKERS + threadIdx.x;
    if (index >= p.dims.columns()) return;
    enum : u32 { K, V, GY, AA, BB, PP };
    const Kept<6> kept(shared);
    const Column at(p.dims, index);
    const float w = p.w[at.channel], u = p.u[at.channel];

    WkvState s = wkv4_load_state(p.state, at);
    walk(
        p.dims.time, [&](u32 t) { return KeyValue{widen(p.k[at.token(t)]), widen(p.v[at.token(t)])}; },
        [&](u32 t, KeyValue in) {
            if (t % CHUNK == 0) {
                p.workspace[at.checkpoint(t / CHUNK, 0, 3)] = s.aa;
                p.workspace[at.checkpoint(t / CHUNK, 1, 3)] = s.bb;
                p.workspace[at.checkpoint(t / CHUNK, 2, 3)] = s.pp;
            }
            wkv4_advance(s, w, in.k, in.v);
        });

    // ga, gb: gradient with respect to aa and bb after token t, their exponent pp held fixed.
    // y depends on aa exp(pp) and bb exp(pp) only, so a fixed pp loses nothing.
    float ga = p.gstate_out[at.state(0)], gb = p.gstate_out[at.state(1)];
    float gw = 0.0f, gu = 0.0f;
    walk_back(
        p.dims.time,
        [&](u32 t) {
            const u64 i = at.token(t);
            return Wkv4Token{widen(p.k[i]), widen(p.v[i]), p.gy[i]};
        },
        [&](u32 chunk) {
            s.aa = p.workspace[at.checkpoint(chunk, 0, 3)];
            s.bb = p.workspace[at.checkpoint(chunk, 1, 3)];
            s.pp = p.workspace[at.checkpoint(chunk, 2, 3)];
        },
        [&](u32 j, Wkv4Token in) {
            kept(j, K) = in.k;
            kept(j, V) = in.v;
            kept(j, GY) = in.gy;
            kept(j, AA) = s.aa;
            kept(j, BB) = s.bb;
            kept(j, PP) = s.pp;
            wkv4_advance(s, w, in.k, in.v);
        },
        [&](u32 t, u32 j) {
            const float k = kept(j, K), v = kept(j, V), gy = kept(j, GY);
            const float aa = kept(j, AA), bb = kept(j, BB), pp = kept(j, PP);

            // The output: y = (e1 aa + e2 v) / (e1 bb + e2).
            const ExpPair e(pp, u + k);
            const float inverse = 1.0f / fmaf(e.a, bb, e.b);
            const float y = fmaf(e.a, aa, e.b * v) * inverse;
            const float g = gy * inverse;
            const float present = (g * e.b) * (v - y);

            // The next state: aa' = d1 aa + d2 v, bb' = d1 bb + d2.
            const ExpPair d(pp + w, k);
            gu += present;
            gw = fmaf(d.a, fmaf(ga, aa, gb * bb), gw);
            narrow(fmaf(d.b, fmaf(ga, v, gb), present), p.gk[at.token(t)]);
            narrow(fmaf(g, e.b, ga * d.b), p.gv[at.token(t)]);
            ga = fmaf(g, e.a, ga * d.a);
            gb = gb * d.a - (g * e.a) * y;
        });
    p.gw[index] = gw;
    p.gu[index] = gu;
    p.gstate[at.state(0)] = ga;
    p.gstate[at.state(1)] = gb;
    p.gstate[at.state(2)] = 0.0f;
}
