// The wide path: passes of more than 8 tokens, prompts and batches, bound by arithmetic. A phase of the narrow path is two to
// three launches here, which leave their results in memory:
//
//   EMBED    embed
//   MIX      inputs, products, wkv
//   CHANNEL  inputs, products
//   ADD      [encode,] products, neurons
//   HEAD     inputs, products
//
// The arithmetic is that of the narrow path: whatever the tiles, an output is the sum over its blocks of 64 inputs, ascending,
// and a block is one chain from +0.
#pragma once
#include "generate/arithmetic.cuh"
#include "generate/narrow/phase.cuh"

constexpr u32 WIDE_THREADS = 256;
constexpr u32 WIDE_WARPS = WIDE_THREADS / WARP_LANES;

/// What a matrix is multiplied with. Tokens lie as many inputs apart as there are in whole blocks of 64; what lies between the
/// last input and the next token is zero.
struct WideInput {
    /// Of a matrix of floats.
    float *floats;
    /// Of integers, with `[blocks][tokens]` scales, and the inputs that are outliers.
    signed char *codes;
    float *scales;
    float *outliers;
};

/// Of all launches of this path. Every array is `[tokens][..]`.
struct Wide {
    Phase phase;
    const Pass *pass;
    /// Tokens, or in HEAD lines.
    u32 count;
    /// Rows.
    u32 rows;
    WideInput input[MOST_MATRICES];
    /// The residual stream, and its form after the layer norm that the last MIX or CHANNEL has made.
    float *x, *normed;
    float *key, *value, *gate;
    /// In whole blocks of 64.
    float *y, *wide;
    /// What drives the neurons.
    float *out;
    float *logits, *hidden;
};

__device__ __forceinline__ u32 whole_blocks(u32 inputs) { return (inputs + BLOCK - 1) / BLOCK * BLOCK; }

/// Which outputs and tokens a block of threads works on. Blocks that follow each other share weights.
struct WideTile {
    u32 matrix, output, token;

    __device__ __forceinline__ WideTile(const Wide &p, u32 outputs, u32 tokens) : matrix(0) {
        const u32 token_tiles = (p.count + tokens - 1) / tokens;
        u32 tile = blockIdx.x / token_tiles;
        token = (blockIdx.x - tile * token_tiles) * tokens;
        for (u32 tiles; matrix + 1 < p.phase.matrices && tile >= (tiles = of(p, matrix, outputs)); ++matrix) tile -= tiles;
        output = tile * outputs;
    }

  private:
    static __device__ __forceinline__ u32 of(const Wide &p, u32 matrix, u32 outputs) {
        return (p.phase.matrix[matrix].outputs + outputs - 1) / outputs;
    }
};

/// Makes of a product what the phase is for.
__device__ __forceinline__ void wide_finish(const Wide &p, u32 matrix, u32 token, u32 output, float y) {
    const u32 width = p.phase.width;
    const u64 at = u64(token) * width + output;
    switch (p.phase.kind) {
        case MIX:
            if (matrix == 2) {
                p.gate[at] = sigmoid_exact(y);
            } else {
                (matrix == 0 ? p.key : p.value)[at] = y;
            }
            break;
        case CHANNEL:
            if (matrix == 1) {
                p.gate[at] = sigmoid_exact(y);
            } else {
                p.wide[u64(token) * whole_blocks(p.phase.matrix[0].outputs) + output] = relu_squared(y);
            }
            break;
        case ADD: p.out[at] = p.phase.flags & GATED ? p.gate[at] * y : y; break;
        default: p.logits[u64(token) * p.phase.matrix[0].outputs + output] = y;
    }
}
