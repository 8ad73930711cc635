// Adds up what the warps have left of a round, and makes of it what the phase is for.
#pragma once
#include "generate/narrow/product.cuh"
#include "generate/narrow/stage.cuh"

template <class W, u32 COLUMNS>
struct Finish {
    using Plan = SharedPlan<W, COLUMNS>;

    const Phase &p;
    const Stage<W, COLUMNS> &stage;
    const Plan plan;
    const Rounds rounds;

    __device__ __forceinline__ Finish(const Phase &p, const Stage<W, COLUMNS> &stage)
        : p(p), stage(stage), plan(p), rounds(p) {}

    /// The block has met: a thread per output and column folds it, and then, where a channel depends on the tokens before, a
    /// thread per channel walks them. The block meets in between.
    __device__ __forceinline__ void round(u32 number) const {
        const float *partials = Products<W, COLUMNS>(p, stage.shared).partials(number);
        fold(number, partials);
        if (p.kind != MIX && p.kind != ADD) return;
        const u32 index = threadIdx.x / GROUP, item = Rounds::item(p, number, index);
        const u32 channel = item * GROUP + threadIdx.x % GROUP;
        __syncthreads();
        if (index >= p.round_items || item >= p.items || channel >= p.width) return;
        if (p.kind == MIX) {
            mix_channel(index, channel);
        } else {
            add_channel(index, channel);
        }
    }

  private:
    /// What `folded` holds: of MIX the products of three matrices and the state before a row's tokens, else these.
    enum Numbers : u32 { KEY, VALUE, GATE, STATE, PRODUCT = 0, RESIDUAL, MEMBRANE };

    __device__ __forceinline__ float &folded(u32 index, u32 number, u32 output, u32 column) const {
        float *all = reinterpret_cast<float *>(stage.shared + plan.folded);
        return all[((index * Plan::FOLDED + number) * COLUMNS + column) * GROUP + output];
    }

    /// Every output of the round: the sum over its blocks, ascending.
    __device__ __forceinline__ void fold(u32 number, const float *partials) const {
        const u32 joint = p.kind == MIX ? p.matrices : 1, all = p.round_items * joint * COLUMNS * GROUP;
#pragma unroll 1
        for (u32 i = threadIdx.x; i < all; i += NARROW_THREADS) {
            const u32 output = i % GROUP, column = i / GROUP % COLUMNS, product = i / (GROUP * COLUMNS);
            const u32 index = p.kind == MIX ? product / joint : product;
            u32 matrix = product - index * joint, group = Rounds::item(p, number, index);
            if (column >= stage.count || group >= p.items) continue;
            const float *units =
                partials + (index * rounds.item_units + matrix * rounds.matrix_units) * Plan::LINES * Plan::LINE;
            if (p.kind != MIX && group >= p.matrix[0].groups()) {
                matrix = 1;
                group -= p.matrix[0].groups();
            }
            const PackedMatrix &m = p.matrix[matrix];
            const u32 row = group * GROUP + output;
            if (row >= m.outputs) continue;
            const PassEntry &entry = stage.entry(column);
            const u32 at = column * p.width + row;
            // What comes from far is asked for before the sum.
            float gate = 0.0f, state = 0.0f, residual = 0.0f, shift = 0.0f;
            const bool walks = p.kind == MIX || (p.kind == ADD && p.flags & NEURONS);
            if (walks && entry.from) state = load_shared_by_grid(entry.from + p.state + matrix * p.width + row);
            if (p.kind == ADD) {
                residual = load_shared_by_grid(stage.work.x + at);
                if (p.flags & GATED) gate = load_shared_by_grid(stage.work.gate + at);
                if (entry.to) shift = load_shared_by_grid(stage.work.normed + at);
            }
            float y = sum_blocks(m, units, output, column);
            const bool receptance = p.kind == MIX ? matrix == 2 : p.kind == CHANNEL && matrix == 1;
            if (receptance) y = sigmoid_exact(y);
            if (p.kind == MIX ? matrix == 2 : receptance) stage.work.normed[at] = stage.normed(column, row);
            if (p.kind == HEAD) {
                stage.work.logits[u64(column) * m.outputs + row] = y;
            } else if (p.kind == CHANNEL) {
                float *to = receptance ? stage.work.gate + at : stage.work.wide + u64(column) * m.outputs + row;
                *to = receptance ? y : relu_squared(y);
            } else if (p.kind == MIX) {
                folded(index, matrix, output, column) = y;
                folded(index, STATE + matrix, output, column) = state;
            } else {
                folded(index, PRODUCT, output, column) = p.flags & GATED ? gate * y : y;
                folded(index, RESIDUAL, output, column) = residual;
                folded(index, MEMBRANE, output, column) = state;
                if (entry.to) entry.to[p.shift + row] = shift;
            }
        }
    }

    /// Adds up the blocks of an output in order, and then its outliers. Each addition waits for the one before it, so what follows is
    /// loaded early: three spans at a time.
    __device__ __forceinline__ float sum_blocks(const PackedMatrix &m, const float *units, u32 output, u32 column) const {
        constexpr u32 AT_ONCE = 3 * SPAN_BLOCKS;
        const auto at = [&](u32 block, u32 line) {
            return units[(block / SPAN_BLOCKS * Plan::LINES + line) * Plan::LINE + block % SPAN_BLOCKS * GROUP + output];
        };
        const u32 blocks = m.blocks();
        float y = 0.0f;
        u32 block = 0;
#pragma unroll 1
        for (; block + AT_ONCE <= blocks; block += AT_ONCE) {
            float sum[AT_ONCE], scale[AT_ONCE] = {};
#pragma unroll
            for (u32 i = 0; i < AT_ONCE; ++i) {
                sum[i] = at(block + i, column);
                if constexpr (W::INTEGERS) scale[i] = at(block + i, COLUMNS);
            }
#pragma unroll
            for (u32 i = 0; i < AT_ONCE; ++i) y = W::INTEGERS ? fmaf(scale[i], sum[i], y) : y + sum[i];
        }
#pragma unroll 1
        for (; block < blocks; ++block) {
            y = W::INTEGERS ? fmaf(at(block, COLUMNS), at(block, column), y) : y + at(block, column);
        }
        if constexpr (W::INTEGERS) {
            const u32 outliers = m.outlier_blocks();
#pragma unroll 1
            for (u32 b = 0; b < outliers; ++b) y = y + at(p.spans * SPAN_BLOCKS + b, column);
        }
        return y;
    }

    /// WKV over the tokens, gated by receptance.
    __device__ __forceinline__ void mix_channel(u32 index, u32 channel) const {
        const u32 output = threadIdx.x % GROUP, width = p.width;
        const float decay = p.decay[channel], first = p.first[channel];
        WkvState s = {};
#pragma unroll 1
        for (u32 t = 0; t < stage.count; ++t) {
            const PassEntry &entry = stage.entry(t);
            const auto number = [&](u32 which) { return folded(index, which, output, t); };
            if (entry.from) s = {number(STATE), number(STATE + 1), number(STATE + 2)};
            const float k = number(KEY), v = number(VALUE);
            stage.work.y[t * width + channel] = number(GATE) * wkv4_read(s, first, k, v);
            wkv4_advance(s, decay, k, v);
            if (entry.to) {
                float *to = entry.to + p.state + channel;
                to[0] = s.aa;
                to[width] = s.bb;
                to[2 * width] = s.pp;
            }
        }
    }

    /// What the product gives joins the residual stream, through a neuron if there is one.
    __device__ __forceinline__ void add_channel(u32 index, u32 channel) const {
        const u32 output = threadIdx.x % GROUP;
        const bool neurons = p.flags & NEURONS, halve = p.flags & HALVE;
        const float decay = neurons && p.decay ? p.decay[channel] : 0.5f;
        float membrane = 0.0f;
#pragma unroll 1
        for (u32 t = 0; t < stage.count; ++t) {
            const PassEntry &entry = stage.entry(t);
            float out = folded(index, PRODUCT, output, t);
            if (neurons) {
                if (entry.from) membrane = folded(index, MEMBRANE, output, t);
                const float h = lif_charge(membrane, out, decay);
                out = h >= 1.0f ? 1.0f : 0.0f;
                membrane = lif_reset(h);
                if (entry.to) entry.to[p.state + channel] = membrane;
            }
            const float sum = folded(index, RESIDUAL, output, t) + out;
            stage.work.x[t * p.width + channel] = halve ? 0.5f * sum : sum;
        }
    }
};
