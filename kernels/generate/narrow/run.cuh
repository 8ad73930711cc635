// Runs phases of the narrow path: one per launch, or all in one cooperative launch with barriers over the grid.
#pragma once
#include "generate/narrow/finish.cuh"
#include "generate/grid.cuh"

/// The rows of embeddings of a pass's tokens after ln0, a token to a block.
template <class W, u32 COLUMNS>
__device__ __forceinline__ void embed(const Phase &p, const Stage<W, COLUMNS> &stage) {
#pragma unroll 1
    for (u32 t = blockIdx.x; t < stage.count; t += gridDim.x) {
        const u64 row = u64(stage.entry(t).id) * p.width;
        float *x = stage.raw(0);
#pragma unroll 1
        for (u32 c = threadIdx.x; c < p.width; c += NARROW_THREADS) {
            if (p.table_format == TABLE_F32) {
                x[c] = reinterpret_cast<const float *>(p.table)[row + c];
            } else {
                const u16 bits = reinterpret_cast<const u16 *>(p.table)[row + c];
                x[c] = p.table_format == TABLE_BF16 ? widen(bf16{bits}) : widen_f16(bits);
            }
        }
        __syncthreads();
        stage.statistics(t, 1);
        __syncthreads();
#pragma unroll 1
        for (u32 c = threadIdx.x; c < p.width; c += NARROW_THREADS) {
            stage.work.x[t * p.width + c] = stage.columns.stats[t].apply(x[c], p.norm_weight[c], p.norm_bias[c]);
        }
        __syncthreads();
    }
}

/// The residual stream of the wanted lines, for the host.
template <class W, u32 COLUMNS>
__device__ __forceinline__ void show_hidden(const Phase &p, const Stage<W, COLUMNS> &stage) {
#pragma unroll 1
    for (u32 t = 0; t < stage.count; ++t) {
        const float *x = stage.work.x + stage.entry(t).line * p.width;
#pragma unroll 1
        for (u32 c = blockIdx.x * NARROW_THREADS + threadIdx.x; c < p.width; c += gridDim.x * NARROW_THREADS) {
            stage.work.hidden[t * p.width + c] = load_shared_by_grid(x + c);
        }
    }
}

/// Puts the inputs of a part into shared memory. The block meets before and after.
template <class W, u32 COLUMNS>
__device__ __forceinline__ void stage_inputs(const Stage<W, COLUMNS> &stage, u32 part, bool first) {
    if (stage.p.kind == ADD) {
        stage_plain(stage, stage.p.flags & GATED ? stage.work.wide : stage.work.y, part, first);
    } else {
        stage_normed(stage, part, first);
    }
}

/// `flow`: this warp's weights, the first of which are asked for already.
template <class W, u32 COLUMNS>
__device__ __forceinline__ void run_phase(const Phase &p, const Workspace &work, Columns &columns, u8 *shared, Flow &flow) {
    const Stage<W, COLUMNS> stage(p, work, columns, shared);
    if (stage.count == 0) return;
    if (p.kind == EMBED) return embed(p, stage);
    const u32 count = Rounds::count(p), none = ~0u;
    if (p.kind == HEAD) show_hidden(p, stage);
#pragma unroll 1
    for (u32 round = 0, staged = none; round < count; ++round) {
#pragma unroll 1
        for (u32 part = 0; part < p.parts(); ++part) {
            if (!Rounds::has(p, round, part)) continue;
            // With parts there is one place for partial sums, which the end of the round before has read now.
            if (p.parts() > 1) __syncthreads();
            if (staged != part) {
                stage_inputs(stage, part, staged == none);
                __syncthreads();
            }
            staged = part;
            Products<W, COLUMNS>(p, shared).round(round, part, flow);
        }
        __syncthreads();
        // Without, those of the next round go elsewhere, so nobody waits for the end of this.
        Finish<W, COLUMNS>(p, stage).round(round);
    }
}

/// Brings vectors and states that a phase will read into the second level cache, where the weights streaming by have pushed them
/// out; a line for each thread of the grid. None of it is being written: a shift that the phase before writes is another one.
__device__ __forceinline__ void fetch_ahead(const Phase &p, const ShortPass &pass) {
    constexpr u32 LINE = 32, VECTORS = 7;
    const u32 lines = (p.width + LINE - 1) / LINE;
    const u32 thread = threadIdx.x * gridDim.x + blockIdx.x, part = thread / lines, at = (thread - part * lines) * LINE;
    if (part < VECTORS) {
        const float *vector = part == 0 ? p.norm_weight : part == 1 ? p.norm_bias : part == 2 ? p.decay : p.first;
        if (part >= 4) vector = p.mix[part - 4];
        if (vector) prefetch_line(vector + at);
        return;
    }
    // Of the first token: the shift, and aa, bb and pp or the membranes.
    const u32 field = part - VECTORS, fields = p.kind == MIX ? 4 : p.kind == CHANNEL ? 1 : 0;
    const bool neurons = p.kind == ADD && p.flags & NEURONS;
    if (field >= (neurons ? 1 : fields)) return;
    const u32 place = neurons ? p.state : field == 0 ? p.shift : p.state + (field - 1) * p.width;
    prefetch_line(pass.entries[0].from + place + at);
}

/// Copies words that all threads will see after the next barrier of the block.
template <class T>
__device__ __forceinline__ void copy_words(T &to, const T &from) {
    const u32 *source = reinterpret_cast<const u32 *>(&from);
    u32 *target = reinterpret_cast<u32 *>(&to);
#pragma unroll 1
    for (u32 i = threadIdx.x; i < sizeof(T) / 4; i += NARROW_THREADS) target[i] = source[i];
}

template <class W, u32 COLUMNS>
__device__ __forceinline__ void narrow(const Narrow &params) {
    DYNAMIC_SHARED(u8, shared);
    SHARED(Columns, columns, 1);
    SHARED(Phase, phases, 2);
    copy_words(phases[0], params.phase);
    __syncthreads();
#pragma unroll 1
    for (u32 i = 0; i < params.count; ++i) {
        const Phase &phase = phases[i % 2];
        // Weights do not depend on what other blocks do: they are asked for before the wait.
        Flow flow;
        Flow::begin<W>(phase, flow);
        if (i == 0) {
            copy_words(columns->pass, *reinterpret_cast<const ShortPass *>(params.pass));
            __syncthreads();
        }
        fetch_ahead(phase, columns->pass);
        if (i > 0 && !grid_meet(params.arrived, columns->pass.arrived + i * gridDim.x, params.stuck)) {
            return;
        }
        if (i + 1 < params.count) copy_words(phases[(i + 1) % 2], params.following[i]);
        run_phase<W, COLUMNS>(phase, params.work, *columns, shared, flow);
        __syncthreads();
    }
}
