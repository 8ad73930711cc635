// What comes before the products of the wide path: embedding, layer norm, token shift, and of integers the encoding.
#pragma once
#include "generate/encode.cuh"
#include "generate/wide/wide.cuh"

/// Channels of two tokens in shared memory lie this far apart, so that half warps read them from different banks.
__device__ __forceinline__ u32 raw_stride(u32 width) { return ((width + 15) / 16 | 1) * 16; }

/// The statistics of the tokens at `raw` and at `raw + second`. The block meets at the end.
__device__ __forceinline__ void wide_statistics(const Phase &p, const float *raw, u32 second, NormStats *stats) {
    if (threadIdx.x < WARP_LANES) {
        const u32 half = threadIdx.x / NORM_LANES, lane = threadIdx.x % NORM_LANES;
        const float *x = raw + half * second;
        const NormStats found = norm_stats(p.width, p.epsilon, lane, [&](u32 c) { return x[c]; });
        if (lane == 0) stats[half] = found;
    }
    __syncthreads();
}

/// Row `id` of the embedding after ln0. A block of threads per token.
__device__ __forceinline__ void wide_embed(const Wide &params) {
    DYNAMIC_SHARED(float, raw);
    SHARED(NormStats, stats, 2);
    const Phase &p = params.phase;
    const u32 token = blockIdx.x;
    const u64 row = u64(params.pass->entries[token].id) * p.width;
    for (u32 c = threadIdx.x; c < p.width; c += WIDE_THREADS) {
        if (p.table_format == TABLE_F32) {
            raw[c] = reinterpret_cast<const float *>(p.table)[row + c];
        } else {
            const u16 bits = reinterpret_cast<const u16 *>(p.table)[row + c];
            raw[c] = p.table_format == TABLE_BF16 ? widen(bf16{bits}) : widen_f16(bits);
        }
    }
    __syncthreads();
    wide_statistics(p, raw, 0, stats);
    for (u32 c = threadIdx.x; c < p.width; c += WIDE_THREADS) {
        params.x[u64(token) * p.width + c] = stats[0].apply(raw[c], p.norm_weight[c], p.norm_bias[c]);
    }
}

/// Gives matrix `m` the inputs of a token in a block: `low` and `high` are inputs `lane` and `lane + 32`. The warp comes whole.
template <bool INTEGERS>
__device__ __forceinline__ void wide_put(const Wide &params, u32 m, u32 token, u32 block, float low, float high) {
    const u32 lane = threadIdx.x % WARP_LANES;
    const PackedMatrix &matrix = params.phase.matrix[m];
    const WideInput &to = params.input[m];
    const u64 at = u64(token) * whole_blocks(matrix.inputs) + block * BLOCK + lane;
    if (!INTEGERS) {
        to.floats[at] = low;
        to.floats[at + WARP_LANES] = high;
        return;
    }
    if (matrix.outliers) {
        const u64 mask = matrix.outlier_masks[block];
        const u32 before = matrix.outliers_before[block], stride = matrix.outlier_blocks() * BLOCK;
        float *outliers = to.outliers + u64(token) * stride;
        const auto keep = [&](u32 input, float &x) {
            if (!(mask >> input & 1)) return;
            outliers[before + count_bits(mask & ((u64(1) << input) - 1))] = x;
            x = 0.0f;
        };
        keep(lane, low);
        keep(lane + WARP_LANES, high);
        if (block == 0) {
            for (u32 i = matrix.outliers + lane; i < stride; i += WARP_LANES) outliers[i] = 0.0f;
        }
    }
    const EncodedPair codes = encode_block(low, high);
    to.codes[at] = codes.low;
    to.codes[at + WARP_LANES] = codes.high;
    if (lane == 0) to.scales[u64(block) * params.count + token] = codes.scale;
}

/// The normed residual stream, as it is (HEAD) or mixed for each matrix with that of the token before. A block of threads per
/// token or line.
template <bool INTEGERS>
__device__ __forceinline__ void wide_inputs(const Wide &params) {
    DYNAMIC_SHARED(float, raw);
    SHARED(NormStats, stats, 2);
    const Phase &p = params.phase;
    const bool head = p.kind == HEAD;
    const u32 line = blockIdx.x, token = head ? params.pass->entries[line].line : line;
    const float *from = head ? nullptr : params.pass->entries[token].from;
    // Then the token before it is one of this pass, and is normed here as well.
    const bool follows = !head && !from;
    const u32 second = follows ? raw_stride(p.width) : 0;
    const float *x = params.x + u64(token) * p.width;
    for (u32 c = threadIdx.x; c < p.width; c += WIDE_THREADS) {
        raw[c] = x[c];
        if (follows) raw[second + c] = *(x - p.width + c);
        if (head) params.hidden[u64(line) * p.width + c] = x[c];
    }
    __syncthreads();
    wide_statistics(p, raw, second, stats);
    const u32 blocks = p.matrix[0].blocks();
    for (u32 block = threadIdx.x / WARP_LANES; block < blocks; block += WIDE_WARPS) {
        float now[2] = {0.0f, 0.0f}, before[2] = {0.0f, 0.0f};
        u32 channel[2];
#pragma unroll
        for (u32 i = 0; i < 2; ++i) {
            const u32 c = channel[i] = block * BLOCK + threadIdx.x % WARP_LANES + i * WARP_LANES;
            if (c >= p.width) continue;
            const float weight = p.norm_weight[c], bias = p.norm_bias[c];
            now[i] = stats[0].apply(raw[c], weight, bias);
            if (head) continue;
            before[i] = follows ? stats[1].apply(raw[second + c], weight, bias) : from[p.shift + c];
            params.normed[u64(token) * p.width + c] = now[i];
        }
        for (u32 m = 0; m < p.matrices; ++m) {
            float mixed[2];
#pragma unroll
            for (u32 i = 0; i < 2; ++i) {
                const u32 c = channel[i];
                mixed[i] = head ? now[i] : c < p.width ? token_mix(now[i], before[i], p.mix[m][c]) : 0.0f;
            }
            wide_put<INTEGERS>(params, m, line, block, mixed[0], mixed[1]);
        }
    }
}

/// Encodes what another launch has left, a block of 64 inputs by a warp.
__device__ __forceinline__ void wide_encode(const Wide &params) {
    const PackedMatrix &matrix = params.phase.matrix[0];
    const u32 blocks = matrix.blocks(), task = blockIdx.x * WIDE_WARPS + threadIdx.x / WARP_LANES;
    const u32 token = task / blocks, block = task - token * blocks;
    if (token >= params.count) return;
    const float *from = params.phase.flags & GATED ? params.wide : params.y;
    const float *x = from + u64(token) * whole_blocks(matrix.inputs) + block * BLOCK + threadIdx.x % WARP_LANES;
    wide_put<true>(params, 0, token, block, x[0], x[WARP_LANES]);
}
