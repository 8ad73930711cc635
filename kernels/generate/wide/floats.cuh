// Products of the wide path with weights that are floats: tiles of outputs and tokens, in registers.
//
// All arithmetic is that of ordinary float units, because tensor cores add in an order and with roundings of their own. A
// thread has some chains under way at a time, in `chain`, and adds each block of 64 inputs to `sum`. 16 inputs at a time lie in
// shared memory, twice: while one half is multiplied the next comes from memory.
#pragma once
#include "generate/wide/wide.cuh"

/// Inputs in shared memory.
constexpr u32 SLAB = 16;

/// A thread has OUTPUT_QUADS times 4 outputs and TOKEN_QUADS times 4 tokens; quads of a thread lie as far apart as those of its
/// neighbours reach, so that a warp reads shared memory without conflicts.
template <u32 OUTPUT_QUADS_, u32 TOKEN_QUADS_, u32 OUTPUT_WARPS_, u32 TOKEN_WARPS_>
struct FloatTile {
    static constexpr u32 OUTPUT_QUADS = OUTPUT_QUADS_, TOKEN_QUADS = TOKEN_QUADS_, OUTPUT_WARPS = OUTPUT_WARPS_;
    static constexpr u32 OUTPUTS = 32 * OUTPUT_QUADS * OUTPUT_WARPS, TOKENS = 16 * TOKEN_QUADS * TOKEN_WARPS_;
    static constexpr u32 THREADS = WARP_LANES * OUTPUT_WARPS * TOKEN_WARPS_;
    /// Tokens of one input lie together, a bit apart from those of the next.
    static constexpr u32 TOKEN_STRIDE = TOKENS + 4;
};
/// For much work, and where that would leave multiprocessors idle.
using LargeFloatTile = FloatTile<2, 2, 2, 2>;
using SmallFloatTile = FloatTile<1, 1, 1, 2>;

template <class W, class Tile>
struct FloatProduct {
    static constexpr u32 STEPS = SLAB / W::INPUTS, SLABS = BLOCK / SLAB;
    static constexpr u32 WEIGHTS = Tile::OUTPUTS * STEPS / Tile::THREADS, INPUTS = Tile::TOKENS * SLAB / 4 / Tile::THREADS;
    static_assert(WEIGHTS * Tile::THREADS == Tile::OUTPUTS * STEPS, "every thread loads as many weights");
    static_assert(INPUTS * Tile::THREADS == Tile::TOKENS * SLAB / 4, "every thread loads as many inputs");

    const PackedMatrix &m;
    const float *const x;
    const u32 output, token, count, stride;

    /// What a thread brings of the next slab.
    struct Loaded {
        Bytes16 weights[WEIGHTS];
        Float4 inputs[INPUTS];
    };

    __device__ __forceinline__ void load(u32 slab, Loaded &to) const {
        const u32 block = slab / SLABS, part = slab % SLABS;
#pragma unroll
        for (u32 i = 0; i < WEIGHTS; ++i) {
            const u32 piece = threadIdx.x + i * Tile::THREADS, row = output + piece % Tile::OUTPUTS;
            const u32 step = part * STEPS + piece / Tile::OUTPUTS, last = m.groups() - 1;
            // Beyond the last group it is read again, and what comes of it is dropped.
            const u32 group = row / GROUP < last ? row / GROUP : last;
            const u32 lane = block % SPAN_BLOCKS * GROUP + row % GROUP;
            const u64 unit = u64(group) * m.spans() + block / SPAN_BLOCKS;
            to.weights[i] = *reinterpret_cast<const Bytes16 *>(m.weights + unit * W::UNIT_BYTES + step * STEP_BYTES + lane * 16);
        }
#pragma unroll
        for (u32 i = 0; i < INPUTS; ++i) {
            const u32 piece = threadIdx.x + i * Tile::THREADS;
            const u32 row = token + piece / (SLAB / 4), there = row < count ? row : count - 1;
            to.inputs[i] = *reinterpret_cast<const Float4 *>(x + u64(there) * stride + slab * SLAB + piece % (SLAB / 4) * 4);
        }
    }

    static __device__ __forceinline__ void store(const Loaded &from, float *weights, float *inputs) {
#pragma unroll
        for (u32 i = 0; i < WEIGHTS; ++i) {
            const u32 piece = threadIdx.x + i * Tile::THREADS;
            float *to = weights + piece / Tile::OUTPUTS * W::INPUTS * Tile::OUTPUTS + piece % Tile::OUTPUTS;
            float wide[W::INPUTS];
            W::widen(from.weights[i], wide);
#pragma unroll
            for (u32 k = 0; k < W::INPUTS; ++k) to[k * Tile::OUTPUTS] = wide[k];
        }
#pragma unroll
        for (u32 i = 0; i < INPUTS; ++i) {
            const u32 piece = threadIdx.x + i * Tile::THREADS;
            float *to = inputs + piece % (SLAB / 4) * 4 * Tile::TOKEN_STRIDE + piece / (SLAB / 4);
            to[0] = from.inputs[i].x;
            to[Tile::TOKEN_STRIDE] = from.inputs[i].y;
            to[2 * Tile::TOKEN_STRIDE] = from.inputs[i].z;
            to[3 * Tile::TOKEN_STRIDE] = from.inputs[i].w;
        }
    }
};

/// QUADS times 4 numbers, `apart` numbers from quad to quad.
template <u32 QUADS>
__device__ __forceinline__ void read_quads(const float *from, u32 apart, float (&to)[4 * QUADS]) {
#pragma unroll
    for (u32 q = 0; q < QUADS; ++q) {
        const Float4 four = *reinterpret_cast<const Float4 *>(from + q * apart);
        to[4 * q] = four.x;
        to[4 * q + 1] = four.y;
        to[4 * q + 2] = four.z;
        to[4 * q + 3] = four.w;
    }
}

template <class W, class Tile>
__device__ __forceinline__ void wide_floats(const Wide &p) {
    constexpr u32 WEIGHTS = SLAB * Tile::OUTPUTS, INPUTS = SLAB * Tile::TOKEN_STRIDE;
    constexpr u32 OUTPUTS = 4 * Tile::OUTPUT_QUADS, TOKENS = 4 * Tile::TOKEN_QUADS;
    SHARED(Float4, all_weights, 2 * WEIGHTS / 4);
    SHARED(Float4, all_inputs, 2 * INPUTS / 4);
    float *weights = reinterpret_cast<float *>(all_weights), *inputs = reinterpret_cast<float *>(all_inputs);
    const WideTile tile(p, Tile::OUTPUTS, Tile::TOKENS);
    const PackedMatrix &m = p.phase.matrix[tile.matrix];
    using Product = FloatProduct<W, Tile>;
    const Product product{m, p.input[tile.matrix].floats, tile.output, tile.token, p.count, whole_blocks(m.inputs)};
    const u32 warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES;
    const u32 output = warp % Tile::OUTPUT_WARPS * 32 * Tile::OUTPUT_QUADS + lane % 8 * 4;
    const u32 token = warp / Tile::OUTPUT_WARPS * 16 * Tile::TOKEN_QUADS + lane / 8 * 4;

    float sum[TOKENS][OUTPUTS] = {}, chain[TOKENS][OUTPUTS] = {};
    const u32 slabs = m.blocks() * Product::SLABS;
    typename Product::Loaded next;
    product.load(0, next);
    Product::store(next, weights, inputs);
    __syncthreads();
#pragma unroll 1
    for (u32 slab = 0; slab < slabs; ++slab) {
        const u32 half = slab % 2, other = 1 - half;
        if (slab + 1 < slabs) product.load(slab + 1, next);
        const float *w_at = weights + half * WEIGHTS + output, *x_at = inputs + half * INPUTS + token;
#pragma unroll 4
        for (u32 k = 0; k < SLAB; ++k) {
            float w[OUTPUTS], x[TOKENS];
            read_quads<Tile::OUTPUT_QUADS>(w_at + k * Tile::OUTPUTS, 32, w);
            read_quads<Tile::TOKEN_QUADS>(x_at + k * Tile::TOKEN_STRIDE, 16, x);
#pragma unroll
            for (u32 t = 0; t < TOKENS; ++t) {
#pragma unroll
                for (u32 o = 0; o < OUTPUTS; ++o) chain[t][o] = fmaf(w[o], x[t], chain[t][o]);
            }
        }
        if (slab % Product::SLABS == Product::SLABS - 1) {
#pragma unroll
            for (u32 t = 0; t < TOKENS; ++t) {
#pragma unroll
                for (u32 o = 0; o < OUTPUTS; ++o) {
                    sum[t][o] = sum[t][o] + chain[t][o];
                    chain[t][o] = 0.0f;
                }
            }
        }
        if (slab + 1 < slabs) Product::store(next, weights + other * WEIGHTS, inputs + other * INPUTS);
        __syncthreads();
    }
    // Through shared memory, so that the code that finishes is there once for each row of a thread's, and stores are in order.
    constexpr u32 ROUND_TOKENS = Tile::TOKENS / TOKENS;
    static_assert(ROUND_TOKENS * Tile::OUTPUTS <= 2 * WEIGHTS, "a round fits where the weights were");
#pragma unroll
    for (u32 t = 0; t < TOKENS; ++t) {
        float *to = weights + (token / (16 * Tile::TOKEN_QUADS) * 4 + lane / 8) * Tile::OUTPUTS + output;
#pragma unroll
        for (u32 o = 0; o < OUTPUTS; ++o) to[o / 4 * 32 + o % 4] = sum[t][o];
        __syncthreads();
#pragma unroll 1
        for (u32 i = threadIdx.x; i < ROUND_TOKENS * Tile::OUTPUTS; i += Tile::THREADS) {
            const u32 row = tile.output + i % Tile::OUTPUTS, which = i / Tile::OUTPUTS;
            const u32 at = tile.token + which / 4 * 16 * Tile::TOKEN_QUADS + which % 4 * 4 + t / 4 * 16 + t % 4;
            if (at < p.count && row < m.outputs) wide_finish(p, tile.matrix, at, row, weights[i]);
        }
        __syncthreads();
    }
}
