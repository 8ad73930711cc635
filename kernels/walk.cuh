// How a thread goes over tokens in order: loads run ahead of arithmetic, which would wait for each of them otherwise.
#pragma once
#include "common.cuh"

/// Tokens whose loads are under way while earlier ones are computed.
constexpr u32 AHEAD = 8;

/// Calls step(j, load(j)) for j = 0 .. count - 1, loading AHEAD tokens early.
template <class Load, class Step>
__device__ __forceinline__ void walk(u32 count, Load load, Step step) {
    using Token = decltype(load(0u));
    Token next[AHEAD] = {};
#pragma unroll
    for (u32 j = 0; j < AHEAD; ++j) {
        if (j < count) next[j] = load(j);
    }
    for (u32 start = 0; start < count; start += AHEAD) {
        Token now[AHEAD];
#pragma unroll
        for (u32 j = 0; j < AHEAD; ++j) now[j] = next[j];
#pragma unroll
        for (u32 j = 0; j < AHEAD; ++j) {
            if (start + AHEAD + j < count) next[j] = load(start + AHEAD + j);
        }
#pragma unroll
        for (u32 j = 0; j < AHEAD; ++j) {
            if (start + j < count) step(start + j, now[j]);
        }
    }
}
