// Brings the inputs of a phase's products into shared memory: layer norm, token shift, and of integers the encoding.
#pragma once
#include "generate/arithmetic.cuh"
#include "generate/encode.cuh"
#include "generate/narrow/phase.cuh"

/// The pass, as far as this path goes.
struct ShortPass {
    u32 tokens, rows, lines, arrived;
    PassEntry entries[8];
};

/// What the block knows of the pass, and what normalises the columns of this phase.
struct Columns {
    ShortPass pass;
    NormStats stats[8];
};

template <class W, u32 COLUMNS>
struct Stage {
    using Plan = SharedPlan<W, COLUMNS>;

    const Phase &p;
    const Workspace &work;
    Columns &columns;
    u8 *const shared;
    /// Of the columns, which are tokens, or in HEAD lines.
    const u32 count;

    __device__ __forceinline__ Stage(const Phase &p, const Workspace &work, Columns &columns, u8 *shared)
        : p(p), work(work), columns(columns), shared(shared),
          count(p.kind == HEAD ? columns.pass.lines : columns.pass.tokens) {}

    __device__ __forceinline__ Plan plan() const { return Plan(p); }
    __device__ __forceinline__ const PassEntry &entry(u32 i) const { return columns.pass.entries[i]; }

    __device__ __forceinline__ float *raw(u32 column) const {
        return reinterpret_cast<float *>(shared + plan().raw) + column * plan().raw_stride;
    }

    /// Copies the residual stream of the columns, and finds what normalises each.
    __device__ __forceinline__ void normalise() const {
#pragma unroll 1
        for (u32 t = 0; t < count; ++t) {
            const u32 token = p.kind == HEAD ? entry(t).line : t;
            const float *x = work.x + u64(token) * p.width;
#pragma unroll 2
            for (u32 c = threadIdx.x; c < p.width; c += NARROW_THREADS) raw(t)[c] = load_shared_by_grid(x + c);
        }
        __syncthreads();
        statistics(0, count);
        __syncthreads();
    }

    /// What normalises the first columns of `raw`, which are columns `first` and so on. Two columns to a warp.
    __device__ __forceinline__ void statistics(u32 first, u32 number) const {
        const u32 t = threadIdx.x / NORM_LANES, lane = threadIdx.x % NORM_LANES;
        if (threadIdx.x / WARP_LANES * 2 >= number) return;
        const float *x = raw(t < number ? t : number - 1);
        const NormStats stats = norm_stats(p.width, p.epsilon, lane, [&](u32 c) { return x[c]; });
        if (lane == 0 && t < number) columns.stats[first + t] = stats;
    }

    /// Channel `c` of a column after the layer norm.
    __device__ __forceinline__ float normed(u32 t, u32 c) const {
        return columns.stats[t].apply(raw(t)[c], p.norm_weight[c], p.norm_bias[c]);
    }

    /// Gives matrix `m` the inputs of a column in a block: `low` and `high` are inputs `lane` and `lane + 32`. The warp comes whole.
    __device__ __forceinline__ void put(u32 m, u32 t, u32 block, float low, float high) const {
        const u32 lane = threadIdx.x % WARP_LANES;
        const u32 blocks = p.staged_spans() * SPAN_BLOCKS, matrix = p.one_matrix() ? 0 : m;
        const u32 place = p.kind == ADD ? block % blocks : block;
        u8 *to = shared + plan().staged + ((matrix * COLUMNS + t) * blocks + place) * Staged<W>::BYTES;
        if (!W::INTEGERS) {
            reinterpret_cast<float *>(to)[lane] = low;
            reinterpret_cast<float *>(to)[lane + WARP_LANES] = high;
            return;
        }
        if (p.matrix[m].outliers) {
            const u64 mask = p.matrix[m].outlier_masks[block];
            const u32 before = p.matrix[m].outliers_before[block];
            keep(m, t, before, mask, lane, low);
            keep(m, t, before, mask, lane + WARP_LANES, high);
        }
        const EncodedPair codes = encode_block(low, high);
        reinterpret_cast<signed char *>(to)[lane] = codes.low;
        reinterpret_cast<signed char *>(to)[lane + WARP_LANES] = codes.high;
        if (lane == 0) *reinterpret_cast<float *>(to + BLOCK) = codes.scale;
    }

    /// Fills the last block of the outliers of every column with zeros.
    __device__ __forceinline__ void clear_outliers() const {
        if (!W::INTEGERS || p.outlier_spans == 0) return;
        float *from = reinterpret_cast<float *>(shared + plan().outliers);
        const u32 floats = (plan().partials - plan().outliers) / 4;
        for (u32 i = threadIdx.x; i < floats; i += NARROW_THREADS) from[i] = 0.0f;
    }

  private:
    /// Takes an outlier out of its block and puts it among the outliers.
    __device__ __forceinline__ void keep(u32 m, u32 t, u32 before, u64 mask, u32 input, float &x) const {
        if (!(mask >> input & 1)) return;
        const u32 index = before + count_bits(mask & ((u64(1) << input) - 1));
        u8 *to = shared + plan().outliers +
                 ((m * COLUMNS + t) * p.outlier_spans * SPAN_BLOCKS + index / BLOCK) * STAGED_FLOATS;
        reinterpret_cast<float *>(to)[index % BLOCK] = x;
        x = 0.0f;
    }
};

/// A block of channels: what a lane needs of it whatever the column. Asked for before it is known what normalises a column.
struct Channels {
    u32 channel[2];
    float weight[2], bias[2], mix[2][MOST_MATRICES], before[2];

    __device__ __forceinline__ Channels(const Phase &p, u32 mixes, const PassEntry &first, u32 block) {
#pragma unroll
        for (u32 i = 0; i < 2; ++i) {
            const u32 c = channel[i] = block * BLOCK + threadIdx.x % WARP_LANES + i * WARP_LANES;
            const bool there = c < p.width;
            weight[i] = there ? p.norm_weight[c] : 0.0f;
            bias[i] = there ? p.norm_bias[c] : 0.0f;
            before[i] = there && mixes ? load_shared_by_grid(first.from + p.shift + c) : 0.0f;
#pragma unroll
            for (u32 m = 0; m < MOST_MATRICES; ++m) mix[i][m] = there && m < mixes ? p.mix[m][c] : 0.0f;
        }
    }

    __device__ __forceinline__ float mu(u32 i, u32 m) const { return m == 0 ? mix[i][0] : m == 1 ? mix[i][1] : mix[i][2]; }
};

/// The normed residual stream, as it is (HEAD) or mixed for each matrix with that of the token before; of the parts that are staged
/// one at a time, part `part`.
template <class W, u32 COLUMNS>
__device__ __forceinline__ void stage_normed(const Stage<W, COLUMNS> &stage, u32 part, bool first) {
    const Phase &p = stage.p;
    const u32 blocks = p.matrix[0].blocks(), mixes = p.kind == HEAD ? 0 : p.matrices;
    const u32 begin = p.one_matrix() ? part : 0, end = p.one_matrix() ? part + 1 : p.matrices;
    u32 block = threadIdx.x / WARP_LANES;
    if (first) stage.clear_outliers();
#pragma unroll 1
    for (; block < blocks || first; block += WARPS) {
        const Channels channels(p, mixes, stage.entry(0), block);
        if (first) stage.normalise();
        first = false;
        if (block >= blocks) return;
        float last[2] = {channels.before[0], channels.before[1]};
#pragma unroll 1
        for (u32 t = 0; t < stage.count; ++t) {
            const float *from = stage.entry(t).from;
            float x[2];
#pragma unroll
            for (u32 i = 0; i < 2; ++i) {
                const u32 c = channels.channel[i];
                const bool there = c < p.width;
                x[i] = there ? stage.columns.stats[t].apply(stage.raw(t)[c], channels.weight[i], channels.bias[i]) : 0.0f;
                if (mixes && t > 0 && from && there) last[i] = load_shared_by_grid(from + p.shift + c);
            }
#pragma unroll 1
            for (u32 m = begin; m < end; ++m) {
                const float low = token_mix(x[0], last[0], channels.mu(0, m));
                const float high = token_mix(x[1], last[1], channels.mu(1, m));
                stage.put(m, t, block, mixes ? low : x[0], mixes ? high : x[1]);
            }
            last[0] = x[0];
            last[1] = x[1];
        }
    }
}

/// What another phase has left, `[tokens][inputs]`: the spans of a part.
template <class W, u32 COLUMNS>
__device__ __forceinline__ void stage_plain(const Stage<W, COLUMNS> &stage, const float *from, u32 part, bool first) {
    const u32 inputs = stage.p.matrix[0].inputs, all = stage.p.matrix[0].blocks();
    const u32 lane = threadIdx.x % WARP_LANES, most = stage.p.staged_spans() * SPAN_BLOCKS, begin = part * most;
    const u32 blocks = all - begin < most ? all - begin : most;
    if (W::INTEGERS && stage.p.outlier_spans && first) {
        stage.clear_outliers();
        __syncthreads();
    }
    // Blocks and tokens as one list, so that several loads are under way.
    const u32 tasks = blocks * stage.count;
#pragma unroll 2
    for (u32 task = threadIdx.x / WARP_LANES; task < tasks; task += WARPS) {
        const u32 t = task / blocks, block = begin + task - t * blocks;
        const u32 low = block * BLOCK + lane, high = low + WARP_LANES;
        const float *x = from + u64(t) * inputs;
        const float a = low < inputs ? load_shared_by_grid(x + low) : 0.0f;
        const float b = high < inputs ? load_shared_by_grid(x + high) : 0.0f;
        stage.put(0, t, block, a, b);
    }
}
