// Products of the wide path with weights of 8 bits: exact integer sums over 64 inputs on tensor cores, then floats.
//
// A warp has 16 outputs and some times 8 tokens. mma.m16n8k32 gives lane (row = lane / 4, quad = lane % 4) the inputs 4 quad ..
// and 16 + 4 quad .. of output `row`, of output `row + 8` and of token `row`. Integers add up to the same in any order, so a
// lane takes 16 neighbouring inputs instead, the same ones of outputs and tokens: that is how weights are packed, and one load.
#pragma once
#include "generate/wide/wide.cuh"

constexpr u32 INTEGER_WARPS = 4;
constexpr u32 INTEGER_THREADS = INTEGER_WARPS * WARP_LANES;
constexpr u32 WARP_OUTPUTS = 16;
constexpr u32 INTEGER_OUTPUTS = INTEGER_WARPS * WARP_OUTPUTS;
/// Times 8 tokens.
constexpr u32 LARGE_INTEGER_TILE = 8, SMALL_INTEGER_TILE = 2;

/// sum[0], sum[1] += output `row` by tokens 2 quad and 2 quad + 1; sum[2], sum[3] += output `row + 8` by the same.
/// a: inputs of the outputs `row` and `row + 8`, then further ones of both; b: the same inputs of token `row`.
__device__ __forceinline__ void multiply_bytes(int (&sum)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
#ifdef SPIKELET_SIMT
    struct Brought {
        u32 a[4], b[2];
    } mine = {{a0, a1, a2, a3}, {b0, b1}};
    const u64 *all = reinterpret_cast<const u64 *>(simt::warp_gather(~0u, reinterpret_cast<uintptr_t>(&mine)));
    const u32 row = simt::lane() / 4, quad = simt::lane() % 4;
    for (u32 i = 0; i < 4; ++i) {
        for (u32 k = 0; k < 4; ++k) {
            const Brought &weights = *reinterpret_cast<const Brought *>(all[row * 4 + k]);
            const Brought &tokens = *reinterpret_cast<const Brought *>(all[(quad * 2 + i % 2) * 4 + k]);
            sum[i] = dot4(weights.a[i / 2], tokens.b[0], sum[i]);
            sum[i] = dot4(weights.a[2 + i / 2], tokens.b[1], sum[i]);
        }
    }
    __syncwarp();
#else
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#endif
}

template <u32 TILES>
struct IntegerProduct {
    /// A block of 64 inputs.
    struct Loaded {
        Bytes16 weights[2], codes[TILES];
        u16 weight_scales[2];
        float scales[TILES][2];
    };

    const PackedMatrix &m;
    const WideInput &x;
    /// The first of the warp's.
    const u32 output, token, count;
    const u32 row, quad;

    __device__ __forceinline__ IntegerProduct(const Wide &p, const WideTile &tile)
        : m(p.phase.matrix[tile.matrix]), x(p.input[tile.matrix]),
          output(tile.output + threadIdx.x / WARP_LANES * WARP_OUTPUTS), token(tile.token), count(p.count),
          row(threadIdx.x % WARP_LANES / 4), quad(threadIdx.x % 4) {}

    /// Beyond the last group or token it is read again, and what comes of it is dropped.
    __device__ __forceinline__ u32 group(u32 half) const {
        const u32 wanted = output / GROUP + half, last = m.groups() - 1;
        return wanted < last ? wanted : last;
    }
    __device__ __forceinline__ u32 clamped(u32 t) const { return t < count ? t : count - 1; }

    __device__ __forceinline__ void load(u32 block, Loaded &to) const {
        const u32 first_lane = block % SPAN_BLOCKS * GROUP;
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u8 *unit = m.weights + (u64(group(half)) * m.spans() + block / SPAN_BLOCKS) * Q8::UNIT_BYTES;
            to.weights[half] = *reinterpret_cast<const Bytes16 *>(unit + quad * STEP_BYTES + (first_lane + row) * 16);
            to.weight_scales[half] = *reinterpret_cast<const u16 *>(unit + Q8::SCALES + (first_lane + row) * 2);
        }
        const u32 stride = whole_blocks(m.inputs);
        const float *scales = x.scales + u64(block) * count;
#pragma unroll
        for (u32 j = 0; j < TILES; ++j) {
            const signed char *codes = x.codes + u64(clamped(token + j * 8 + row)) * stride + block * BLOCK + quad * 16;
            to.codes[j] = *reinterpret_cast<const Bytes16 *>(codes);
#pragma unroll
            for (u32 i = 0; i < 2; ++i) to.scales[j][i] = scales[clamped(token + j * 8 + quad * 2 + i)];
        }
    }

    /// sum[j][0 .. 4] are as in multiply_bytes, of tokens 8 j ..
    __device__ __forceinline__ void add(const Loaded &from, float (&sum)[TILES][4]) const {
        const Bytes16 &w0 = from.weights[0], &w1 = from.weights[1];
        const float scale[2] = {widen(bf16{from.weight_scales[0]}), widen(bf16{from.weight_scales[1]})};
#pragma unroll
        for (u32 j = 0; j < TILES; ++j) {
            const Bytes16 &c = from.codes[j];
            // The bits of 1.5 * 2^23: sums of up to 2^20 on top of it are a float that is so much larger.
            constexpr int MAGIC = 0x4b400000;
            int products[4] = {MAGIC, MAGIC, MAGIC, MAGIC};
            multiply_bytes(products, w0.x, w1.x, w0.y, w1.y, c.x, c.y);
            multiply_bytes(products, w0.z, w1.z, w0.w, w1.w, c.z, c.w);
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                const float product = __uint_as_float(u32(products[i])) - 12582912.0f;
                sum[j][i] = fmaf(scale[i / 2], product * from.scales[j][i % 2], sum[j][i]);
            }
        }
    }

    /// Adds the columns of outlier inputs to one output of one token: few, and in float units.
    __device__ __forceinline__ float add_outliers(float y, u32 o, u32 t) const {
        const float *inputs = x.outliers + u64(t) * m.outlier_blocks() * BLOCK;
#pragma unroll 1
        for (u32 block = 0; block < m.outlier_blocks(); ++block) {
            const u64 unit = u64(o / GROUP) * m.outlier_spans() + block / SPAN_BLOCKS;
            const u8 *weights = m.outlier_weights + unit * Bf16::UNIT_BYTES + (block % SPAN_BLOCKS * GROUP + o % GROUP) * 16;
            float chain = 0.0f;
#pragma unroll 2
            for (u32 step = 0; step < Bf16::STEPS; ++step) {
                float w[Bf16::INPUTS];
                Bf16::widen(*reinterpret_cast<const Bytes16 *>(weights + step * STEP_BYTES), w);
#pragma unroll
                for (u32 k = 0; k < Bf16::INPUTS; ++k) chain = fmaf(w[k], inputs[block * BLOCK + step * Bf16::INPUTS + k], chain);
            }
            y = y + chain;
        }
        return y;
    }
};

template <u32 TILES>
__device__ __forceinline__ void wide_integers(const Wide &p) {
    const WideTile tile(p, INTEGER_OUTPUTS, TILES * 8);
    const IntegerProduct<TILES> product(p, tile);
    const PackedMatrix &m = product.m;
    if (product.output >= m.outputs) return;
    float sum[TILES][4] = {};
    typename IntegerProduct<TILES>::Loaded now, next;
    const u32 blocks = m.blocks();
    product.load(0, next);
#pragma unroll 1
    for (u32 block = 0; block < blocks; ++block) {
        now = next;
        if (block + 1 < blocks) product.load(block + 1, next);
        product.add(now, sum);
    }
    // Through shared memory, so that the code that finishes is there once for each 8 tokens, and stores are in order.
    SHARED(float, finished, INTEGER_WARPS * WARP_OUTPUTS * 8);
    float *mine = finished + threadIdx.x / WARP_LANES * WARP_OUTPUTS * 8;
#pragma unroll
    for (u32 j = 0; j < TILES; ++j) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            mine[(product.quad * 2 + i % 2) * WARP_OUTPUTS + i / 2 * 8 + product.row] = sum[j][i];
        }
        __syncwarp();
#pragma unroll 1
        for (u32 i = threadIdx.x % WARP_LANES; i < WARP_OUTPUTS * 8; i += WARP_LANES) {
            const u32 row = product.output + i % WARP_OUTPUTS, to = product.token + j * 8 + i / WARP_OUTPUTS;
            if (to >= p.count || row >= m.outputs) continue;
            const float y = m.outliers ? product.add_outliers(mine[i], row, to) : mine[i];
            wide_finish(p, tile.matrix, to, row, y);
        }
        __syncwarp();
    }
}
