// The narrow path: passes of up to 8 tokens, bound by the bytes of the weights. A pass is a chain of phases; between two of
// them every block waits for every other, because a phase needs all channels of what the one before it made.
//
//   EMBED    x = ln0(embedding)
//   per layer:
//   MIX      r, k, v of the shifted ln1(x), WKV, y = sigmoid(r) wkv         (CHANNEL where the layer has ffnPre instead)
//   ADD      x += neurons(output y)
//   CHANNEL  wide = relu²(key ..), gate = sigmoid(receptance ..) of the shifted ln2(x)
//   ADD      x += neurons(gate * value wide)
//   HEAD     logits = head ln_out(x) of the wanted lines
//
// A phase is described by a struct, so that one function runs them all, one per launch or all in one.
#pragma once
#include "generate/device.cuh"
#include "generate/pass.cuh"
#include "generate/weights.cuh"

/// Threads of a block: 12 warps are as many as SpikeGPT-216M has blocks of 64 channels, and twelve units under way at a time
/// are 48 KB.
constexpr u32 NARROW_THREADS = 384;
constexpr u32 WARPS = NARROW_THREADS / WARP_LANES;
constexpr u32 MOST_MATRICES = 3;

enum Kind : u32 { EMBED, MIX, CHANNEL, ADD, HEAD };

/// Of ADD.
enum Flags : u32 {
    /// What is added drives neurons first, and their spikes are added.
    NEURONS = 1,
    /// The product is of `wide` instead of `y`, and `gate` multiplies it.
    GATED = 2,
    /// The residual stream is halved after it.
    HALVE = 4,
    /// Of MIX and CHANNEL: the inputs of one matrix at a time are staged. For models so wide that all of them find no room.
    ONE_MATRIX = 8,
    /// The bits from here on are a number: of ADD, how many spans of inputs are staged at a time; else all spans.
    STAGED_SPANS = 16
};

/// How an embedding table is stored, row after row.
enum TableFormat : u32 { TABLE_F32, TABLE_BF16, TABLE_F16 };

struct Phase {
    u32 kind;
    /// Channels of the residual stream.
    u32 width;
    u32 matrices;
    /// Groups of outputs that blocks share out. In MIX an item is one group of all matrices, else of one, matrix after matrix.
    u32 items;
    /// Items that a block works on at a time.
    u32 round_items;
    /// Units of one group of one matrix: spans, and after them outlier spans, as many as the matrix with most of them has.
    u32 spans, outlier_spans;
    u32 flags;
    PackedMatrix matrix[MOST_MATRICES];
    /// EMBED, MIX, CHANNEL, HEAD: the layer norm.
    const float *norm_weight, *norm_bias;
    /// MIX: of key, value, receptance. CHANNEL: of key, receptance.
    const float *mix[MOST_MATRICES];
    /// MIX: decay and bonus of WKV. ADD: `decay` of the neurons; null is one half.
    const float *decay, *first;
    /// EMBED.
    const u8 *table;
    u32 table_format;
    float epsilon;
    /// Where in a slot the token shift lies: read in MIX and CHANNEL, and written in the ADD after it, when all have read it.
    u32 shift;
    /// Where in a slot aa, bb and pp lie (MIX), or the membranes (ADD).
    u32 state;

    __device__ __forceinline__ u32 staged_spans() const { return flags >> STAGED_SPANS; }
    __device__ __forceinline__ bool one_matrix() const { return flags & ONE_MATRIX; }
    /// How often inputs are staged anew: for each matrix, or for each so many spans.
    __device__ __forceinline__ u32 parts() const {
        if (one_matrix()) return matrices;
        return kind == ADD && staged_spans() < spans ? (spans + staged_spans() - 1) / staged_spans() : 1;
    }
};

/// What phases leave for each other, `[tokens][..]` each.
struct Workspace {
    /// The residual stream, and its form after the layer norm that the last MIX or CHANNEL has made.
    float *x, *normed;
    float *y, *wide, *gate;
    /// For the host, `[lines][vocab]` and `[lines][width]`.
    float *logits, *hidden;
};

struct Narrow {
    Phase phase;
    /// The `count - 1` that come after it in the same launch, if that is cooperative.
    const Phase *following;
    u32 count;
    u32 unused;
    /// Counts the blocks that have come to a barrier over the grid, and is not 0 if one of them waited for too long.
    u32 *arrived, *stuck;
    const Pass *pass;
    Workspace work;
};

static_assert(sizeof(Phase) == 256 && sizeof(Narrow) == 352, "as in rust/engine/src/cuda/narrow.rs");

/// Staged activations: a block of 64 floats, or of 64 codes and their scale, in bytes. The four blocks that a warp reads at
/// a time then lie in different banks.
template <class W>
struct Staged {
    static constexpr u32 BYTES = (BLOCK + 4) * 4;
};
template <>
struct Staged<Q8> {
    static constexpr u32 BYTES = BLOCK + 16;
};
constexpr u32 STAGED_FLOATS = Staged<F32>::BYTES;

/// Where things lie in the memory that a block shares, in bytes. rust/engine/src/cuda/narrow.rs knows the size.
template <class W, u32 COLUMNS>
struct SharedPlan {
    /// Tokens lie this many floats apart, so that two of them are read from different banks.
    u32 raw_stride;
    u32 raw, staged, outliers, partials, folded, end;

    /// A unit leaves for each column (and of integers for the scales) 32 numbers, a bit apart.
    static constexpr u32 LINE = WARP_LANES + 8;
    static constexpr u32 LINES = COLUMNS + (W::INTEGERS ? 1 : 0);
    /// Numbers that are found for each output and column before channels walk the tokens.
    static constexpr u32 FOLDED = 6;

    __device__ __forceinline__ explicit SharedPlan(const Phase &p) {
        const bool normed = p.kind != ADD;
        raw_stride = ((p.width + 15) / 16 | 1) * 16;
        raw = 0;
        staged = raw + (normed ? COLUMNS * raw_stride * 4 : 0);
        outliers = staged + (p.one_matrix() ? 1 : p.matrices) * COLUMNS * p.staged_spans() * SPAN_BLOCKS * Staged<W>::BYTES;
        partials = outliers + p.matrices * COLUMNS * p.outlier_spans * SPAN_BLOCKS * STAGED_FLOATS;
        const u32 units = p.round_items * (p.kind == MIX ? p.matrices : 1) * (p.spans + p.outlier_spans);
        folded = partials + (p.parts() > 1 ? 1 : 2) * units * LINES * LINE * 4;
        end = folded + p.round_items * FOLDED * GROUP * COLUMNS * 4;
    }
};
