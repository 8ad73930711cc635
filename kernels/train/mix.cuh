// Token shift and mix: out[j] = mix[j] x + (1 - mix[j]) (x of the token before), for up to three mixes.
// There is no recurrence, so time is cut into tiles that run side by side.
#pragma once
#include "train/columns.cuh"

constexpr u32 MIXES = 3;
/// Columns per block.
constexpr u32 MIX_THREADS = 128;
/// Tokens per tile. A constant, because sums over tiles must not depend on the device.
constexpr u32 MIX_TILE = 64;

template <class T>
struct MixForward {
    const float *x;            // [batch, time, channels]
    const float *last;         // [batch, channels], what precedes the first token
    const float *mix[MIXES];   // [channels] each; null beyond `count`
    T *out[MIXES];             // [batch, time, channels] each
    Dims dims;
    u32 count;
};

/// The tokens of a block's tile.
struct Tile {
    u32 first, end;

    __device__ __forceinline__ explicit Tile(u32 time) : first(blockIdx.y * MIX_TILE) {
        end = time - first < MIX_TILE ? time : first + MIX_TILE;
    }
};

template <class T>
__device__ __forceinline__ void mix_forward(const MixForward<T> &p) {
    const u32 index = blockIdx.x * MIX_THREADS + threadIdx.x;
    if (index >= p.dims.columns()) return;
    const Column at(p.dims, index);
    const Tile tile(p.dims.time);
    float mix[MIXES] = {};
#pragma unroll
    for (u32 j = 0; j < MIXES; ++j) {
        if (j < p.count) mix[j] = p.mix[j][at.channel];
    }
    float before = tile.first == 0 ? p.last[index] : p.x[at.token(tile.first - 1)];
    walk(
        tile.end - tile.first, [&](u32 i) { return p.x[at.token(tile.first + i)]; },
        [&](u32 i, float x) {
#pragma unroll
            for (u32 j = 0; j < MIXES; ++j) {
                if (j < p.count) narrow(fmaf(mix[j], x - before, before), p.out[j][at.token(tile.first + i)]);
            }
            before = x;
        });
}

template <class T>
struct MixBackward {
    const float *x;            // [batch, time, channels]
    const float *last;         // [batch, channels]
    const float *mix[MIXES];   // [channels] each; null beyond `count`
    const T *gout[MIXES];      // [batch, time, channels] each
    float *gx;                 // [batch, time, channels]
    float *glast;              // [batch, channels]
    float *gmixes;             // [count, batch, tiles, channels], for sum_rows
    Dims dims;
    u32 count;
};

struct MixToken {
    float x, before, g[MIXES];
};

template <class T>
__device__ __forceinline__ void mix_backward(const MixBackward<T> &p) {
    const u32 index = blockIdx.x * MIX_THREADS + threadIdx.x;
    if (index >= p.dims.columns()) return;
    const Column at(p.dims, index);
    const Tile tile(p.dims.time);
    float mix[MIXES] = {}, gmix[MIXES] = {};
    // What token t + 1 sends back to token t, its predecessor.
    float from_next = 0.0f;
#pragma unroll
    for (u32 j = 0; j < MIXES; ++j) {
        if (j < p.count) {
            mix[j] = p.mix[j][at.channel];
            if (tile.end < p.dims.time) {
                const float g = widen(p.gout[j][at.token(tile.end)]);
                from_next += g - g * mix[j];
            }
        }
    }
    walk(
        tile.end - tile.first,
        [&](u32 i) {
            const u32 t = tile.end - 1 - i;
            MixToken in = {p.x[at.token(t)], t == 0 ? p.last[index] : p.x[at.token(t - 1)], {}};
#pragma unroll
            for (u32 j = 0; j < MIXES; ++j) {
                if (j < p.count) in.g[j] = widen(p.gout[j][at.token(t)]);
            }
            return in;
        },
        [&](u32 i, MixToken in) {
            float gx = from_next;
            from_next = 0.0f;
#pragma unroll
            for (u32 j = 0; j < MIXES; ++j) {
                const float own = in.g[j] * mix[j];
                gx += own;
                from_next += in.g[j] - own;
                gmix[j] = fmaf(in.g[j], in.x - in.before, gmix[j]);
            }
            p.gx[at.token(tile.end - 1 - i)] = gx;
        });
    if (tile.first == 0) p.glast[index] = from_next;
#pragma unroll
    for (u32 j = 0; j < MIXES; ++j) {
        const u64 row = (u64(j) * p.dims.batch + at.row) * gridDim.y + blockIdx.y;
        if (j < p.count) p.gmixes[row * p.dims.channels + at.channel] = gmix[j];
    }
}
