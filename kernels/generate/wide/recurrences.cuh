// Recurrences of the wide path: a thread per row and channel walks the row's tokens, loading some of them ahead.
#pragma once
#include "generate/wide/wide.cuh"
#include "walk.cuh"

/// A warp per block, because blocks are dealt to multiprocessors one by one: a single prompt then still reaches many.
constexpr u32 WIDE_WALKERS = 32;

/// A row's channel, and the row's tokens.
struct WideColumn {
    u32 channel, first, count;
    const PassEntry *entries;

    __device__ __forceinline__ explicit WideColumn(const Wide &p) {
        const u32 strips = (p.phase.width + WIDE_WALKERS - 1) / WIDE_WALKERS, row = blockIdx.x / strips;
        channel = (blockIdx.x - row * strips) * WIDE_WALKERS + threadIdx.x;
        first = p.pass->entries[row].row;
        count = (row + 1 < p.rows ? p.pass->entries[row + 1].row : p.count) - first;
        entries = p.pass->entries + first;
    }
};

/// y = sigmoid(r) WKV(k, v).
__device__ __forceinline__ void wide_wkv(const Wide &p) {
    const WideColumn column(p);
    const u32 width = p.phase.width, c = column.channel;
    if (c >= width) return;
    struct Token {
        float k, v, gate;
        float *to;
    };
    const float decay = p.phase.decay[c], bonus = p.phase.first[c];
    const float *from = column.entries[0].from + p.phase.state + c;
    WkvState s = {from[0], from[width], from[2 * width]};
    float *y = p.y + u64(column.first) * whole_blocks(width) + c;
    const auto load = [&](u32 t) {
        const u64 at = u64(column.first + t) * width + c;
        return Token{p.key[at], p.value[at], p.gate[at], column.entries[t].to};
    };
    walk(column.count, load, [&](u32 t, const Token &token) {
        y[u64(t) * whole_blocks(width)] = token.gate * wkv4_read(s, bonus, token.k, token.v);
        wkv4_advance(s, decay, token.k, token.v);
        if (!token.to) return;
        float *to = token.to + p.phase.state + c;
        to[0] = s.aa;
        to[width] = s.bb;
        to[2 * width] = s.pp;
    });
}

/// What the product gives joins the residual stream, through a neuron if there is one. The token shift is kept here, when all
/// have read it.
__device__ __forceinline__ void wide_neurons(const Wide &p) {
    const WideColumn column(p);
    const u32 width = p.phase.width, c = column.channel;
    if (c >= width) return;
    struct Token {
        float out, x;
        float *to;
    };
    const bool neurons = p.phase.flags & NEURONS, halve = p.phase.flags & HALVE;
    const float decay = neurons && p.phase.decay ? p.phase.decay[c] : 0.5f;
    float membrane = neurons ? column.entries[0].from[p.phase.state + c] : 0.0f;
    const auto at = [&](u32 t) { return u64(column.first + t) * width + c; };
    const auto load = [&](u32 t) { return Token{p.out[at(t)], p.x[at(t)], column.entries[t].to}; };
    walk(column.count, load, [&](u32 t, const Token &token) {
        float out = token.out;
        if (neurons) {
            const float h = lif_charge(membrane, out, decay);
            out = h >= 1.0f ? 1.0f : 0.0f;
            membrane = lif_reset(h);
        }
        const float sum = token.x + out;
        p.x[at(t)] = halve ? 0.5f * sum : sum;
        if (!token.to) return;
        token.to[p.phase.shift + c] = p.normed[at(t)];
        if (neurons) token.to[p.phase.state + c] = membrane;
    });
}
