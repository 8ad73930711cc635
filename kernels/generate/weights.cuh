// Weight matrices as rust/engine/src/cuda/weights.rs packs them.
//
// A matrix is [groups of 8 outputs][spans of 256 inputs] units, filled up with zeros. A unit is what a warp multiplies at a
// time: lane l works on output l % 8 of the group and on block l / 8 of the four blocks of 64 inputs, and walks these in
// order, so that its sum is the chain of the CPU engine. The unit lies as the lanes read it: [steps][32 lanes][16 bytes].
// Of integers (q8) it has 4 steps of 16 codes and then the scales, [32 lanes] of bf16.
//
// An output is the sum over its blocks, ascending, from +0 (of q8: fma(scale, sum * activation scale, output)). Blocks
// beyond the last input must not be added: they could turn a -0 into +0.
//
// Columns of outlier inputs of an integer matrix are a bf16 matrix of the same form, whose blocks are added after the others.
#pragma once
#include "generate/device.cuh"

/// Outputs that lie side by side.
constexpr u32 GROUP = 8;
/// Inputs whose products are one chain.
constexpr u32 BLOCK = 64;
/// Blocks that a unit holds.
constexpr u32 SPAN_BLOCKS = 4;
constexpr u32 SPAN = SPAN_BLOCKS * BLOCK;
/// Bytes that a warp reads in one step.
constexpr u32 STEP_BYTES = WARP_LANES * 16;

struct PackedMatrix {
    const u8 *weights;
    /// Of an integer matrix with outlier inputs: their columns; for each block of 64 inputs a bit mask of those in it, and how
    /// many lie in the blocks before. Null without.
    const u8 *outlier_weights;
    const u64 *outlier_masks;
    const u32 *outliers_before;
    u32 outputs, inputs, outliers, unused;

    __device__ __forceinline__ u32 groups() const { return (outputs + GROUP - 1) / GROUP; }
    __device__ __forceinline__ u32 blocks() const { return (inputs + BLOCK - 1) / BLOCK; }
    __device__ __forceinline__ u32 spans() const { return (inputs + SPAN - 1) / SPAN; }
    __device__ __forceinline__ u32 outlier_blocks() const { return (outliers + BLOCK - 1) / BLOCK; }
    __device__ __forceinline__ u32 outlier_spans() const { return (outliers + SPAN - 1) / SPAN; }
};

/// The formats: how many steps a unit has, and how many of its inputs a step holds.
struct F32 {
    static constexpr bool INTEGERS = false;
    static constexpr u32 STEPS = 16, INPUTS = 4, UNIT_BYTES = STEPS * STEP_BYTES;
    static __device__ __forceinline__ void widen(const Bytes16 &b, float (&w)[INPUTS]) {
        w[0] = __uint_as_float(b.x);
        w[1] = __uint_as_float(b.y);
        w[2] = __uint_as_float(b.z);
        w[3] = __uint_as_float(b.w);
    }
};

struct Bf16 {
    static constexpr bool INTEGERS = false;
    static constexpr u32 STEPS = 8, INPUTS = 8, UNIT_BYTES = STEPS * STEP_BYTES;
    static __device__ __forceinline__ void widen(const Bytes16 &b, float (&w)[INPUTS]) {
        const u32 pairs[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            w[2 * i] = __uint_as_float(pairs[i] << 16);
            w[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
        }
    }
};

struct F16 {
    static constexpr bool INTEGERS = false;
    static constexpr u32 STEPS = 8, INPUTS = 8, UNIT_BYTES = STEPS * STEP_BYTES;
    static __device__ __forceinline__ void widen(const Bytes16 &b, float (&w)[INPUTS]) {
        const u32 pairs[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            w[2 * i] = widen_f16(pairs[i] & 0xffffu);
            w[2 * i + 1] = widen_f16(pairs[i] >> 16);
        }
    }
};

/// Codes of 8 bits; the scales follow them.
struct Q8 {
    static constexpr bool INTEGERS = true;
    static constexpr u32 STEPS = 4, INPUTS = 16, SCALES = STEPS * STEP_BYTES, UNIT_BYTES = SCALES + WARP_LANES * 2;
};

/// The format of the floats of a matrix: all of it, or of integers the outliers.
template <class W>
struct FloatsOfFormat {
    using Type = W;
};
template <>
struct FloatsOfFormat<Q8> {
    using Type = Bf16;
};
template <class W>
using FloatsOf = typename FloatsOfFormat<W>::Type;
