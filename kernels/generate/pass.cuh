// What a pass does, as the host describes it in memory before each one: launches stay the same, so a captured graph does.
#pragma once
#include "generate/device.cuh"

/// Most tokens of a pass.
constexpr u32 MAX_TOKENS = 512;

/// Three lists in one, so that a short pass is a short upload: of tokens, of rows, and of lines of logits.
struct PassEntry {
    /// Token i: its id.
    u32 id;
    /// Line i: the token whose logits it holds.
    u32 line;
    /// Row i: its first token.
    u32 row;
    u32 unused;
    /// Token i: the state before it; null where it follows token i - 1 of the same row.
    const float *from;
    /// Token i: where the state after it goes; null if it is not kept. May be the `from` of the row's first token.
    float *to;
};

struct Pass {
    u32 tokens, rows, lines;
    /// How many blocks have come to barriers over the grid in the launches before; it may wrap.
    u32 arrived;
    PassEntry entries[MAX_TOKENS];
};

static_assert(sizeof(PassEntry) == 32 && sizeof(Pass) == 16 + 32 * MAX_TOKENS, "as in rust/engine/src/cuda/pass.rs");
