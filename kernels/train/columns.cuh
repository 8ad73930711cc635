// How training kernels go over [batch, time, channels]: a thread per column, that is per (batch, channel), walking time.
// Neighbouring threads are neighbouring channels, so every load and store of a warp is one contiguous piece.
#pragma once
#include "common.cuh"
#include "walk.cuh"

/// Threads of a block that walks time. One warp, because blocks are dealt to multiprocessors one by one: a batch of few
/// rows then still reaches all of them.
constexpr u32 WALKERS = 32;
/// Backward passes keep the recurrent state before every CHUNK-th token and recompute the rest, a chunk at a time.
constexpr u32 CHUNK = 16;

struct Dims {
    u32 batch;
    u32 time;
    u32 channels;

    __device__ __forceinline__ u32 columns() const { return batch * channels; }
};

/// One (batch, channel).
struct Column {
    Dims dims;
    u32 index, row, channel;

    __device__ __forceinline__ Column(Dims dims, u32 index)
        : dims(dims), index(index), row(index / dims.channels), channel(index % dims.channels) {}

    /// Where token `t` lies in [batch, time, channels].
    __device__ __forceinline__ u64 token(u32 t) const {
        return (u64(row) * dims.time + t) * dims.channels + channel;
    }
    /// Where part `part` of three lies in [batch, 3, channels].
    __device__ __forceinline__ u64 state(u32 part) const { return (u64(row) * 3 + part) * dims.channels + channel; }
    /// Where part `part` of `parts` lies in the workspace [chunks, parts, batch * channels].
    __device__ __forceinline__ u64 checkpoint(u32 chunk, u32 part, u32 parts) const {
        return (u64(chunk) * parts + part) * dims.columns() + index;
    }
};

/// Goes over the chunks of a column from the last to the first.
///
/// For each: enter(chunk); forward(j, load(t)) for its tokens in order, j counting from 0 in the chunk; then
/// backward(t, j) in reverse. The loads of a chunk are under way while the one after it is in its backward part.
template <class Load, class Enter, class Forward, class Backward>
__device__ __forceinline__ void walk_back(u32 time, Load load, Enter enter, Forward forward, Backward backward) {
    using Token = decltype(load(0u));
    Token next[CHUNK] = {};
    const u32 chunks = (time + CHUNK - 1) / CHUNK;
#pragma unroll
    for (u32 j = 0; j < CHUNK; ++j) {
        if ((chunks - 1) * CHUNK + j < time) next[j] = load((chunks - 1) * CHUNK + j);
    }
    for (u32 chunk = chunks; chunk-- > 0;) {
        const u32 first = chunk * CHUNK;
        const u32 count = time - first < CHUNK ? time - first : CHUNK;
        enter(chunk);
#pragma unroll
        for (u32 j = 0; j < CHUNK; ++j) {
            if (j < count) forward(j, next[j]);
        }
        if (chunk > 0) {
#pragma unroll
            for (u32 j = 0; j < CHUNK; ++j) next[j] = load(first - CHUNK + j);
        }
#pragma unroll 2
        for (u32 j = count; j-- > 0;) backward(first + j, j);
    }
}

/// What a thread keeps of each token of a chunk. A block's array is [CHUNK][FIELDS][WALKERS], so no two threads of the
/// warp meet in a bank; each thread only touches its own column, so nothing needs to be synchronised.
template <u32 FIELDS>
struct Kept {
    float *at;

    __device__ __forceinline__ explicit Kept(float *shared) : at(shared + threadIdx.x) {}
    __device__ __forceinline__ float &operator()(u32 j, u32 field) const {
        INTERLEAVE();
        return at[(j * FIELDS + field) * WALKERS];
    }
};
