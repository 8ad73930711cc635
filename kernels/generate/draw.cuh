// Draws a token from each of some lines of logits, the one that the CPU's sampler draws (rust/engine/src/sampler), and what
// its log probability is made of. Several blocks draw from a line, each looking at its part of the tokens. They wait for each
// other, so all of them must run at once (a cooperative launch), but where there is one to a line. One more block sums.
//
// Top-k and top-p keep the best by rank up to some rank. That is found by a histogram over scores, and by ranking the tokens
// of the one bin that it falls into. Where that bin holds too many, the host draws.
#pragma once
#include "generate/arithmetic.cuh"
#include "generate/race.cuh"

constexpr u32 DRAW_THREADS = 256;
constexpr u32 DRAW_WARPS = DRAW_THREADS / WARP_LANES;
constexpr u32 BINS = 1024;
/// Bins for each natural logarithm that a weight is below the greatest.
constexpr float BINS_PER_SCORE = 32.0f;
/// Tokens of a bin that can be ranked.
constexpr u32 RANKED = 1024;
/// Elements that are summed in one go.
constexpr u32 TILE = 1024;
/// Most blocks that draw from one line.
constexpr u32 MOST_PARTS = 32;
constexpr u64 NO_LIMIT = ~0ull;

constexpr u32 GREEDY = 1;
/// Filters come before the temperature.
constexpr u32 LATE_TEMPERATURE = 2;

/// What is drawn from a line.
struct DrawSpec {
    u32 line;
    /// Ids from here on stand for nothing.
    u32 known;
    Race race;
    u32 flags;
    float temperature;
    /// 0: all.
    u32 top_k;
    /// 1: all.
    float top_p;
    u32 unused;
};

/// What came of it.
struct Drawn {
    u32 id;
    /// Not 0: the host has to draw. Some logit is not finite, or too many tokens are equally probable.
    u32 trouble;
    float logit;
    u32 not_finite;
    /// The greatest of the whole line, and the sum of exp(logit - greatest).
    float greatest, sum;
    /// What is at `Draw::stuck`.
    u32 stuck;
    u32 unused;
};

/// What the blocks of a line tell each other. All zero before a launch and after it, but for the lists.
struct Board {
    u32 arrived, done;
    /// Lengths of the lists.
    u32 listed[2];
    float greatest[MOST_PARTS];
    u32 bad[MOST_PARTS];
    double best[MOST_PARTS];
    u32 ids[MOST_PARTS];
    u32 counts[BINS];
    u64 units[BINS];
    u64 ranks[2][RANKED], weights[2][RANKED];
};
static_assert(sizeof(Board) == 45712, "as long as the host thinks");

struct Draw {
    const DrawSpec *specs;
    const float *logits;
    Drawn *drawn;
    /// One for each spec.
    Board *boards;
    /// A word that the host wants to see, or null.
    const u32 *stuck;
    u32 vocab;
    /// Blocks that draw from a line.
    u32 parts;
};

#ifdef SPIKELET_SIMT
inline void add_to(u64 *at, u64 value) { *at += value; }
inline double whole_above(double x) { return __builtin_ceil(x); }
#else
__device__ __forceinline__ void add_to(u64 *at, u64 value) { atomicAdd(at, value); }
__device__ __forceinline__ double whole_above(double x) { return ceil(x); }
#endif

/// What another block may have written.
template <class T>
__device__ __forceinline__ T seen(const T &at) {
    return *static_cast<const volatile T *>(&at);
}

__device__ __forceinline__ u32 warp_lane() { return threadIdx.x % WARP_LANES; }
__device__ __forceinline__ u32 warp_number() { return threadIdx.x / WARP_LANES; }

/// This block among those of its line.
struct Team {
    Board *board;
    u32 part, parts, target;

    /// The first token that a thread looks at, and how far it is to the next.
    __device__ __forceinline__ u32 first() const { return part * DRAW_THREADS + threadIdx.x; }
    __device__ __forceinline__ u32 stride() const { return parts * DRAW_THREADS; }

    /// Waits for the others; what they wrote to the board can be seen then.
    __device__ __forceinline__ void meet() {
        __syncthreads();
        target += parts;
        if (parts > 1 && threadIdx.x == 0) {
            arrive(&board->arrived);
            await(&board->arrived, target);
        }
        __syncthreads();
    }
};

/// A weight in whole numbers, 2^44 of which are 1, to the nearest.
__device__ __forceinline__ u64 units_of(float weight) {
    return bits_of(double(weight) * 17592186044416.0 + 4503599627370496.0) - bits_of(4503599627370496.0);
}

/// Smaller is more probable, and the lower id among equals. Scores are 0 or below.
__device__ __forceinline__ u64 rank_of(float score, u32 id) {
    return u64(__float_as_uint(-score + 0.0f) | 1u << 31) << 32 | id;
}

__device__ __forceinline__ u32 bin_of(float score) {
    const float place = -score * BINS_PER_SCORE;
    return place < float(BINS - 1) ? u32(place) : BINS - 1;
}

/// The greatest of every `stride`th of a line's first `len` logits, and whether all of them are finite, for all of the block.
__device__ __forceinline__ float survey(const float *x, u32 first, u32 stride, u32 len, bool &finite) {
    SHARED(float, greatest, DRAW_WARPS);
    SHARED(u32, bad, DRAW_WARPS);
    float most = __uint_as_float(0xff800000u);
    float zeros = 0.0f;
    for (u32 i = first; i < len; i += stride) {
        const float v = x[i];
        most = v > most ? v : most;
        zeros = zeros + v * 0.0f;
    }
    bool is_bad = zeros != zeros;
    for (u32 half = WARP_LANES / 2; half > 0; half /= 2) {
        const float other = __shfl_xor_sync(ALL_LANES, most, half);
        most = other > most ? other : most;
    }
    is_bad = __ballot_sync(ALL_LANES, is_bad) != 0;
    if (warp_lane() == 0) {
        greatest[warp_number()] = most;
        bad[warp_number()] = is_bad;
    }
    __syncthreads();
    most = greatest[0];
    u32 any = bad[0];
    for (u32 w = 1; w < DRAW_WARPS; ++w) {
        most = greatest[w] > most ? greatest[w] : most;
        any |= bad[w];
    }
    finite = any == 0;
    return most;
}

/// The same of a whole line, by all of its blocks.
__device__ __forceinline__ float survey_together(Team &team, const float *x, u32 len, bool &finite) {
    float most = survey(x, team.first(), team.stride(), len, finite);
    if (threadIdx.x == 0) {
        team.board->greatest[team.part] = most;
        team.board->bad[team.part] = !finite;
    }
    team.meet();
    for (u32 part = 0; part < team.parts; ++part) {
        const float other = seen(team.board->greatest[part]);
        most = other > most ? other : most;
        finite = finite && seen(team.board->bad[part]) == 0;
    }
    return most;
}

/// A line as the filters see it.
struct Scores {
    const float *x;
    u32 len;
    float greatest, temperature;

    __device__ __forceinline__ float of(u32 id) const { return (x[id] - greatest) / temperature; }
};

/// Weights by how far they are below the greatest.
struct Histogram {
    u32 *counts;
    u64 *units;
};

/// The bin into which the one falls that brings `wanted` together, and what the bins before it hold. `by_units`: of units, else
/// of tokens. All threads get the same. False: all bins together do not bring it.
__device__ __forceinline__ bool find_bin(const Histogram &bins, bool by_units, u64 wanted, u32 &bin, u64 &tokens,
                                         u64 &units) {
    SHARED(u64, found, 4);
    if (threadIdx.x < WARP_LANES) {
        constexpr u32 PART = BINS / WARP_LANES;
        const u32 lane = threadIdx.x;
        u64 my_tokens = 0, my_units = 0;
        for (u32 i = lane * PART; i < (lane + 1) * PART; ++i) {
            my_tokens += bins.counts[i];
            my_units += bins.units[i];
        }
        u64 before_tokens = 0, before_units = 0;
        for (u32 i = 0; i < WARP_LANES; ++i) {
            const u64 their_tokens = __shfl_sync(ALL_LANES, my_tokens, i), their_units = __shfl_sync(ALL_LANES, my_units, i);
            before_tokens += i < lane ? their_tokens : 0;
            before_units += i < lane ? their_units : 0;
        }
        const u64 before = by_units ? before_units : before_tokens;
        const u64 mine = by_units ? my_units : my_tokens;
        if (lane == 0) found[3] = 0;
        __syncwarp();
        if (before < wanted && before + mine >= wanted) {
            u32 i = lane * PART;
            while ((by_units ? before_units + bins.units[i] : before_tokens + bins.counts[i]) < wanted) {
                before_tokens += bins.counts[i];
                before_units += bins.units[i];
                ++i;
            }
            found[0] = i;
            found[1] = before_tokens;
            found[2] = before_units;
            found[3] = 1;
        }
    }
    __syncthreads();
    bin = u32(found[0]);
    tokens = found[1];
    units = found[2];
    const bool is_there = found[3] != 0;
    __syncthreads();
    return is_there;
}

/// The rank of the token that brings `wanted` together, best ranks first, and the units up to it. False: its bin holds too many.
__device__ __forceinline__ bool find_rank(Team &team, const Scores &scores, const Histogram &bins, bool by_units,
                                          u64 wanted, u64 &limit, u64 &units_up_to) {
    SHARED(u64, ranks, RANKED);
    SHARED(u64, weights, RANKED);
    SHARED(u64, answer, 2);
    u32 bin;
    u64 tokens, units;
    if (!find_bin(bins, by_units, wanted, bin, tokens, units)) {
        limit = NO_LIMIT;
        units_up_to = 0;
        return true;
    }
    const u32 count = bins.counts[bin];
    if (count > RANKED) return false;
    Board &board = *team.board;
    for (u32 id = team.first(); id < scores.len; id += team.stride()) {
        const float score = scores.of(id);
        const float weight = exp_exact(score);
        if (weight > 0.0f && bin_of(score) == bin) {
            const u32 place = atomicAdd(&board.listed[by_units], 1u);
            board.ranks[by_units][place] = rank_of(score, id);
            board.weights[by_units][place] = units_of(weight);
        }
    }
    team.meet();
    for (u32 i = threadIdx.x; i < count; i += DRAW_THREADS) {
        ranks[i] = seen(board.ranks[by_units][i]);
        weights[i] = seen(board.weights[by_units][i]);
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < count; i += DRAW_THREADS) {
        const u64 mine = ranks[i];
        u64 better = tokens, better_units = units;
        for (u32 j = 0; j < count; ++j) {
            if (ranks[j] < mine) {
                better += 1;
                better_units += weights[j];
            }
        }
        const u64 before = by_units ? better_units : better;
        if (before < wanted && before + (by_units ? weights[i] : 1) >= wanted) {
            answer[0] = mine;
            answer[1] = better_units + weights[i];
        }
    }
    __syncthreads();
    limit = answer[0];
    units_up_to = answer[1];
    __syncthreads();
    return true;
}

/// The last rank that top-k and top-p keep. False: the host must find it.
__device__ __forceinline__ bool filter(Team &team, const Scores &scores, const DrawSpec &spec, u64 &limit) {
    SHARED(u32, counts, BINS);
    SHARED(u64, units, BINS);
    limit = NO_LIMIT;
    if (spec.top_k == 0 && !(spec.top_p < 1.0f)) return true;
    for (u32 i = threadIdx.x; i < BINS; i += DRAW_THREADS) {
        counts[i] = 0;
        units[i] = 0;
    }
    __syncthreads();
    for (u32 id = team.first(); id < scores.len; id += team.stride()) {
        const float score = scores.of(id);
        const float weight = exp_exact(score);
        if (weight > 0.0f) {
            const u32 bin = bin_of(score);
            atomicAdd(&counts[bin], 1u);
            add_to(&units[bin], units_of(weight));
        }
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < BINS; i += DRAW_THREADS) {
        if (counts[i] > 0) {
            atomicAdd(&team.board->counts[i], counts[i]);
            add_to(&team.board->units[i], units[i]);
        }
    }
    team.meet();
    for (u32 i = threadIdx.x; i < BINS; i += DRAW_THREADS) {
        counts[i] = seen(team.board->counts[i]);
        units[i] = seen(team.board->units[i]);
    }
    __syncthreads();
    const Histogram bins = {counts, units};
    u64 total = 0; // by every warp for itself
    for (u32 i = warp_lane(); i < BINS; i += WARP_LANES) total += units[i];
    for (u32 half = WARP_LANES / 2; half > 0; half /= 2) total += __shfl_xor_sync(ALL_LANES, total, half);
    u64 k_limit = NO_LIMIT, up_to = 0;
    if (spec.top_k > 0) {
        if (!find_rank(team, scores, bins, false, spec.top_k, k_limit, up_to)) return false;
        // Where the temperature comes first, so does top-k, and top-p is a share of what that leaves.
        if (k_limit != NO_LIMIT && !(spec.flags & LATE_TEMPERATURE)) total = up_to;
    }
    limit = k_limit;
    if (spec.top_p < 1.0f) {
        const u64 enough = u64(whole_above(double(spec.top_p) * double(total)));
        u64 p_limit;
        if (!find_rank(team, scores, bins, true, enough > 0 ? enough : 1, p_limit, up_to)) return false;
        limit = p_limit < limit ? p_limit : limit;
    }
    return true;
}

/// The first of the block's likeliest tokens.
__device__ __forceinline__ u32 first_of_greatest(const Team &team, const float *x, u32 len, float greatest) {
    SHARED(u32, first, DRAW_WARPS);
    u32 least = ~0u;
    for (u32 id = team.first(); id < len && least == ~0u; id += team.stride()) least = x[id] >= greatest ? id : ~0u;
    for (u32 half = WARP_LANES / 2; half > 0; half /= 2) {
        const u32 other = __shfl_xor_sync(ALL_LANES, least, half);
        least = other < least ? other : least;
    }
    if (warp_lane() == 0) first[warp_number()] = least;
    __syncthreads();
    least = first[0];
    for (u32 w = 1; w < DRAW_WARPS; ++w) least = first[w] < least ? first[w] : least;
    return least;
}

/// Who wins among the block's tokens up to a rank.
__device__ __forceinline__ Lead winner(const Team &team, const Scores &scores, const DrawSpec &spec, u64 limit) {
    SHARED(double, best, DRAW_WARPS);
    SHARED(u32, ids, DRAW_WARPS);
    Lead lead;
    // With filters before it the temperature has not touched the scores yet.
    const bool late = (spec.flags & LATE_TEMPERATURE) != 0;
    for (u32 block = team.first(); 4 * block < scores.len; block += team.stride()) {
        u32 words[4];
        philox(spec.race, block, words);
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            const u32 id = 4 * block + i;
            if (id >= scores.len) continue;
            const float score = scores.of(id);
            float weight = exp_exact(score);
            if (!(weight > 0.0f) || rank_of(score, id) > limit) continue;
            if (late) weight = exp_exact(score / spec.temperature);
            lead.run(id, words[i], weight);
        }
    }
    for (u32 half = WARP_LANES / 2; half > 0; half /= 2) {
        const double score = __shfl_xor_sync(ALL_LANES, lead.score, half);
        const u32 id = __shfl_xor_sync(ALL_LANES, lead.id, half);
        lead.join(score, id);
    }
    if (warp_lane() == 0) {
        best[warp_number()] = lead.score;
        ids[warp_number()] = lead.id;
    }
    __syncthreads();
    for (u32 w = 0; w < DRAW_WARPS; ++w) lead.join(best[w], ids[w]);
    return lead;
}

/// What one block makes of its part, and the last one of all parts.
__device__ __forceinline__ void draw_token(Team team, const float *x, const DrawSpec &spec, const u32 *stuck, Drawn &drawn) {
    SHARED(u32, is_last, 1);
    Board &board = *team.board;
    bool finite;
    const float greatest = survey_together(team, x, spec.known, finite);
    Lead lead;
    if (finite && (spec.flags & GREEDY)) {
        lead.id = first_of_greatest(team, x, spec.known, greatest);
    } else if (finite) {
        const Scores scores = {x, spec.known, greatest, spec.flags & LATE_TEMPERATURE ? 1.0f : spec.temperature};
        u64 limit;
        if (filter(team, scores, spec, limit)) lead = winner(team, scores, spec, limit);
    }
    if (threadIdx.x == 0) {
        board.best[team.part] = lead.score;
        board.ids[team.part] = lead.id;
        __threadfence();
        is_last[0] = atomicAdd(&board.done, 1u) == team.parts - 1;
        __threadfence();
    }
    __syncthreads();
    if (is_last[0] == 0) return;
    if (threadIdx.x == 0) {
        for (u32 part = 0; part < team.parts; ++part) lead.join(seen(board.best[part]), seen(board.ids[part]));
        const u32 id = lead.id;
        drawn.id = id;
        drawn.trouble = id == ~0u;
        drawn.logit = id == ~0u ? 0.0f : x[id];
        drawn.stuck = stuck ? *stuck : 0;
        board.arrived = board.done = board.listed[0] = board.listed[1] = 0;
    }
    // For the next launch. Nobody looks at it any more in this one.
    for (u32 i = threadIdx.x; i < BINS; i += DRAW_THREADS) {
        board.counts[i] = 0;
        board.units[i] = 0;
    }
}

/// In 16 lanes, lane l the elements l, l + 16, .., as everywhere. Other threads prepare what it adds.
__device__ __forceinline__ void sum_weights(const float *x, u32 vocab, Drawn &drawn) {
    SHARED(float, tiles, 2 * TILE);
    bool finite;
    const float greatest = survey(x, threadIdx.x, DRAW_THREADS, vocab, finite);
    float sum = 0.0f;
    for (u32 start = 0, turn = 0; start < vocab; start += TILE, turn ^= 1) {
        float *const tile = tiles + turn * TILE;
        for (u32 i = threadIdx.x; i < TILE; i += DRAW_THREADS) {
            tile[i] = start + i < vocab ? exp_exact(x[start + i] - greatest) : 0.0f;
        }
        __syncthreads();
        // The tile is written again two turns on, which this warp has to reach, too.
        if (threadIdx.x < NORM_LANES) {
#pragma unroll 16
            for (u32 i = threadIdx.x; i < TILE; i += NORM_LANES) sum = sum + tile[i];
        }
    }
    if (threadIdx.x < WARP_LANES) {
        sum = sum_norm_lanes(sum);
        if (threadIdx.x == 0) {
            drawn.greatest = greatest;
            drawn.sum = sum;
            drawn.not_finite = !finite;
        }
    }
}

__device__ __forceinline__ void draw(const Draw &p) {
    const u32 index = blockIdx.x / (p.parts + 1), part = blockIdx.x % (p.parts + 1);
    const DrawSpec spec = p.specs[index];
    Drawn &drawn = p.drawn[index];
    const float *const x = p.logits + u64(spec.line) * p.vocab;
    if (part < p.parts) {
        draw_token({p.boards + index, part, p.parts, 0}, x, spec, p.stuck, drawn);
    } else {
        sum_weights(x, p.vocab, drawn);
    }
}
