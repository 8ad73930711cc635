// The products of a phase: warps take units of a block's items in turn, and read the next while they multiply one.
#pragma once
#include "generate/narrow/phase.cuh"

/// Half a unit of f32, a unit of any other format: what a lane holds in registers.
struct Piece {
    Bytes16 bytes[8];
    u32 scale;
};

/// Where a warp is among the units of its block: round after round, and in a round every WARPS-th unit.
struct Place {
    u32 round, unit;
};

/// A unit to be multiplied; `address` is null where the matrix of this item has fewer than the others.
struct Unit {
    const u8 *address;
    u32 matrix;
    /// Among the spans of the matrix, or of its outliers.
    u32 span;
    /// Which of the inputs must be staged, and where in the round's partial sums it belongs.
    u32 part, place;
    bool outlier;
};

/// How a block goes through its items.
struct Rounds {
    u32 matrix_units, item_units, units;

    __device__ __forceinline__ explicit Rounds(const Phase &p) {
        matrix_units = p.spans + p.outlier_spans;
        item_units = matrix_units * (p.kind == MIX ? p.matrices : 1);
        units = item_units * p.round_items;
    }

    /// How many rounds this block has.
    static __device__ __forceinline__ u32 count(const Phase &p) {
        const u32 items = p.items > blockIdx.x ? (p.items - blockIdx.x - 1) / gridDim.x + 1 : 0;
        return (items + p.round_items - 1) / p.round_items;
    }

    /// The item at a place in a round; at or beyond `items`, none.
    static __device__ __forceinline__ u32 item(const Phase &p, u32 round, u32 index) {
        return blockIdx.x + (round * p.round_items + index) * gridDim.x;
    }

    __device__ __forceinline__ Place first() const { return {0, threadIdx.x / WARP_LANES}; }

    __device__ __forceinline__ Place after(Place at) const {
        const u32 next = at.unit + WARPS;
        return next < units ? Place{at.round, next} : Place{at.round + 1, threadIdx.x / WARP_LANES};
    }

    /// Whether a block has units of a part in a round.
    static __device__ __forceinline__ bool has(const Phase &p, u32 round, u32 part) {
        if (p.kind != CHANNEL || !p.one_matrix()) return true;
        const u32 first = item(p, round, 0), more = (p.items - 1 - first) / gridDim.x;
        const u32 last = first + (more < p.round_items ? more : p.round_items - 1) * gridDim.x;
        return part == 0 ? first < p.matrix[0].groups() : last >= p.matrix[0].groups();
    }

    /// Units of a round come part by part, in a part item by item.
    template <class W>
    __device__ __forceinline__ Unit unit(const Phase &p, Place at) const {
        Unit found = {nullptr, 0, 0, 0, 0, false};
        if (at.unit >= units) return found;
        // Spans of a part but the last, and of this part.
        const u32 step = p.kind == ADD ? p.staged_spans() : matrix_units;
        const u32 parts = p.kind == MIX ? p.matrices : p.kind == ADD ? p.parts() : 1;
        u32 part = parts > 1 ? at.unit / (step * p.round_items) : 0;
        part = part < parts ? part : parts - 1;
        const u32 here = p.kind == ADD && part + 1 == parts ? matrix_units - part * step : step;
        const u32 rest = at.unit - part * step * p.round_items, index = rest / here;
        u32 group = item(p, at.round, index);
        if (group >= p.items) return found;
        found.span = rest - index * here + (p.kind == ADD ? part * step : 0);
        if (p.kind == MIX) {
            found.matrix = part;
        } else if (group >= p.matrix[0].groups()) {
            found.matrix = 1;
            group -= p.matrix[0].groups();
        }
        found.part = p.one_matrix() ? found.matrix : p.kind == ADD ? part : 0;
        found.place = index * item_units + (p.kind == MIX ? part * matrix_units : 0) + found.span;
        const PackedMatrix &m = p.matrix[found.matrix];
        if (found.span < p.spans) {
            found.address = m.weights + (u64(group) * p.spans + found.span) * W::UNIT_BYTES;
        } else if (W::INTEGERS) {
            found.span -= p.spans;
            found.outlier = true;
            const u32 spans = m.outlier_spans();
            if (found.span < spans) {
                found.address = m.outlier_weights + (u64(group) * spans + found.span) * Bf16::UNIT_BYTES;
            }
        }
        return found;
    }
};

/// Asks for a piece of a unit; `part` counts the halves of a unit of f32.
template <class W>
__device__ __forceinline__ void load_piece(const Unit &unit, u32 part, Piece &piece) {
    if (!unit.address) return;
    const u32 lane = threadIdx.x % WARP_LANES;
    const u8 *at = unit.address + part * 8 * STEP_BYTES + lane * 16;
    if (!W::INTEGERS || unit.outlier) {
#pragma unroll
        for (u32 s = 0; s < 8; ++s) piece.bytes[s] = load_stream(at + s * STEP_BYTES);
    } else {
#pragma unroll
        for (u32 s = 0; s < Q8::STEPS; ++s) piece.bytes[s] = load_stream(at + s * STEP_BYTES);
        piece.scale = load_stream_u16(unit.address + Q8::SCALES + lane * 2);
    }
}

/// Adds a piece's products to the chains of the lane's block. `x`: the inputs of the piece, of the first column.
template <class W, u32 COLUMNS>
__device__ __forceinline__ void add_products(const Piece &piece, const u8 *x, u32 column_bytes, float (&sum)[COLUMNS]) {
#pragma unroll
    for (u32 s = 0; s < 8; ++s) {
        float w[W::INPUTS];
        W::widen(piece.bytes[s], w);
#pragma unroll
        for (u32 i = 0; i < W::INPUTS; i += 4) {
#pragma unroll
            for (u32 c = 0; c < COLUMNS; ++c) {
                const Float4 v = *reinterpret_cast<const Float4 *>(x + c * column_bytes + (s * W::INPUTS + i) * 4);
                sum[c] = fmaf(w[i], v.x, sum[c]);
                sum[c] = fmaf(w[i + 1], v.y, sum[c]);
                sum[c] = fmaf(w[i + 2], v.z, sum[c]);
                sum[c] = fmaf(w[i + 3], v.w, sum[c]);
            }
        }
    }
}

/// The exact sum of a block of integers, times what an activation's code stands for.
template <u32 COLUMNS>
__device__ __forceinline__ void dot_products(const Piece &piece, const u8 *x, u32 column_bytes, float (&sum)[COLUMNS]) {
    int total[COLUMNS] = {};
#pragma unroll
    for (u32 s = 0; s < Q8::STEPS; ++s) {
#pragma unroll
        for (u32 c = 0; c < COLUMNS; ++c) {
            const Bytes16 v = *reinterpret_cast<const Bytes16 *>(x + c * column_bytes + s * 16);
            total[c] = dot4(piece.bytes[s].x, v.x, total[c]);
            total[c] = dot4(piece.bytes[s].y, v.y, total[c]);
            total[c] = dot4(piece.bytes[s].z, v.z, total[c]);
            total[c] = dot4(piece.bytes[s].w, v.w, total[c]);
        }
    }
#pragma unroll
    for (u32 c = 0; c < COLUMNS; ++c) {
        sum[c] = float(total[c]) * *reinterpret_cast<const float *>(x + c * column_bytes + BLOCK);
    }
}

/// Where a warp is among its units, and what it has asked for.
struct Flow {
    Piece now;
    Unit unit;
    Place place;

    /// Asks for the first piece. Weights do not depend on other blocks, so this comes before a wait for them.
    template <class W>
    static __device__ __forceinline__ void begin(const Phase &p, Flow &flow) {
        const Rounds rounds(p);
        flow.place = rounds.first();
        flow.unit = rounds.template unit<W>(p, flow.place);
        load_piece<W>(flow.unit, 0, flow.now);
    }
};

/// Multiplies a warp's units, round by round.
template <class W, u32 COLUMNS>
struct Products {
    static constexpr u32 PIECES = W::STEPS > 8 ? 2 : 1;
    using Plan = SharedPlan<W, COLUMNS>;

    const Phase &p;
    u8 *const shared;
    const Plan plan;
    const Rounds rounds;

    __device__ __forceinline__ Products(const Phase &p, u8 *shared) : p(p), shared(shared), plan(p), rounds(p) {}

    __device__ __forceinline__ float *partials(u32 number) const {
        const u32 buffer = p.parts() > 1 ? 0 : number % 2;
        return reinterpret_cast<float *>(shared + plan.partials) + buffer * rounds.units * Plan::LINES * Plan::LINE;
    }

    /// Leaves the partial sums of a round's units of one part in shared memory; the block must meet before they are read.
    __device__ __forceinline__ void round(u32 number, u32 part, Flow &flow) const {
#pragma unroll 1
        while (flow.place.round == number && (!flow.unit.address || flow.unit.part == part)) {
            const Place place = rounds.after(flow.place);
            const Unit next = rounds.template unit<W>(p, place);
            float sum[COLUMNS] = {};
            const u32 scale = multiply(sum, flow, next);
            if (flow.unit.address) leave(partials(number) + flow.unit.place * Plan::LINES * Plan::LINE, sum, scale);
            flow.place = place;
            flow.unit = next;
        }
    }

  private:
    __device__ __forceinline__ void leave(float *line, const float (&sum)[COLUMNS], u32 scale) const {
        const u32 lane = threadIdx.x % WARP_LANES;
#pragma unroll
        for (u32 c = 0; c < COLUMNS; ++c) line[c * Plan::LINE + lane] = sum[c];
        if (W::INTEGERS) line[COLUMNS * Plan::LINE + lane] = __uint_as_float(scale << 16);
    }

    /// The sums of this unit, while the next piece comes. Returns the scale of the lane's block.
    __device__ __forceinline__ u32 multiply(float (&sum)[COLUMNS], Flow &flow, const Unit &next) const {
        const Unit unit = flow.unit;
        const u32 block = unit.span * SPAN_BLOCKS + threadIdx.x % WARP_LANES / GROUP;
        // Of what is staged.
        const u32 staged = block - (p.kind == ADD ? unit.part * p.staged_spans() * SPAN_BLOCKS : 0);
        const u32 matrix = p.one_matrix() ? 0 : unit.matrix;
        u32 scale = 0;
#pragma unroll 1
        for (u32 part = 0; part < PIECES; ++part) {
            Piece coming;
            const bool last = part + 1 == PIECES;
            load_piece<W>(last ? next : unit, last ? 0 : part + 1, coming);
            if (unit.address) {
                if (W::INTEGERS && !unit.outlier) {
                    const u32 column = p.staged_spans() * SPAN_BLOCKS * Staged<W>::BYTES;
                    const u8 *x = shared + plan.staged + matrix * COLUMNS * column + staged * Staged<W>::BYTES;
                    scale = flow.now.scale;
                    dot_products<COLUMNS>(flow.now, x, column, sum);
                } else {
                    const u32 blocks = (W::INTEGERS ? p.outlier_spans : p.staged_spans()) * SPAN_BLOCKS;
                    const u32 column = blocks * STAGED_FLOATS, from = W::INTEGERS ? plan.outliers : plan.staged;
                    const u8 *x = shared + from + (W::INTEGERS ? unit.matrix : matrix) * COLUMNS * column +
                                  (W::INTEGERS ? block : staged) * STAGED_FLOATS;
                    add_products<FloatsOf<W>, COLUMNS>(flow.now, x + part * 8 * FloatsOf<W>::INPUTS * 4, column, sum);
                }
            }
            flow.now = coming;
        }
        return scale;
    }
};
