// The race that draws a token, operation by operation that of rust/simd/src/race.rs, where it is explained.
#pragma once
#include "common.cuh"

#ifdef SPIKELET_SIMT
inline u64 bits_of(double x) {
    u64 bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
}
inline double of_bits(u64 bits) {
    double x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}
#else
__device__ __forceinline__ u64 bits_of(double x) { return u64(__double_as_longlong(x)); }
__device__ __forceinline__ double of_bits(u64 bits) { return __longlong_as_double((long long)bits); }
#endif

constexpr double WORDS = 4294967296.0;

/// Whose times they are: seed, position and row.
struct Race {
    u32 key[2];
    u32 position[2];
    u32 row;
};

/// Philox4x32-10 of a counter whose last word is `block`: the words of tokens 4 block .. 4 block + 3.
__device__ __forceinline__ void philox(const Race &race, u32 block, u32 (&words)[4]) {
    u32 a = race.position[0], b = race.position[1], c = race.row, d = block;
    u32 k = race.key[0], l = race.key[1];
#pragma unroll
    for (u32 round = 0; round < 10; ++round) {
        const u64 x = u64(0xD2511F53u) * a, y = u64(0xCD9E8D57u) * c;
        a = u32(y >> 32) ^ b ^ k;
        b = u32(y);
        c = u32(x >> 32) ^ d ^ l;
        d = u32(x);
        k += 0x9E3779B9u;
        l += 0xBB67AE85u;
    }
    words[0] = a, words[1] = b, words[2] = c, words[3] = d;
}

/// -ln(1 - y) for y from 0 to 1/2, as 2 artanh(y / (2 - y)).
__device__ __forceinline__ double minus_ln_of_one_less(double y) {
    const double t = y / (2.0 - y);
    const double square = t * t;
    double series = 0.0;
#pragma unroll
    for (int k = 15; k >= 0; --k) series = series * square + 1.0 / double(2 * k + 1);
    return 2.0 * t * series;
}

/// -ln(1 - u) with u = (word + 1/2) / 2^32.
__device__ __forceinline__ double exponential(u32 word) {
    if (word < 1u << 31) return minus_ln_of_one_less((double(word) + 0.5) / WORDS);
    const u64 bits = bits_of((double(~word) + 0.5) / WORDS);
    const u64 k = 1022 - (bits >> 52);
    const double m = of_bits(bits + (k << 52));
    return double(k) * 0.693147180559945309417 + minus_ln_of_one_less(1.0 - m);
}

/// Who leads, and what it takes to be looked at.
struct Lead {
    double score = 0.0;
    u32 id = ~0u;
    float bar = 0.0f;

    /// Lets a token run. Of equals the one that ran first stays: ids come ascending.
    __device__ __forceinline__ void run(u32 token, u32 word, float weight) {
        // Times are above the uniform number they are made of; those of words from 2^31 on are above 1/2.
        const float number = word < 1u << 31 ? float(word) : 2147483648.0f;
        if (!(weight >= number * bar) || !(weight > 0.0f)) return;
        const double found = double(weight) / exponential(word);
        if (found > score) {
            score = found;
            id = token;
            const double least = found / WORDS * (1.0 - 1e-6);
            const float rounded = float(least < 3.4028234663852886e38 ? least : 3.4028234663852886e38);
            bar = rounded >= 1.17549435e-38f ? rounded : 0.0f;
        }
    }

    /// Of two leads the better one, of equals the lower id.
    __device__ __forceinline__ void join(double other_score, u32 other_id) {
        if (other_score > score || (other_score == score && other_id < id)) {
            score = other_score;
            id = other_id;
        }
    }
};
