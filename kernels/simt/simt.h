// CUDA's execution model on one CPU thread, for tests: what common.cuh asks of the compiler when SPIKELET_SIMT is defined.
//
// Every CUDA thread is a fiber that runs until it waits for others, or to an INTERLEAVE. Which one runs next is a
// parameter: a result that depends on it is a race. The blocks of a launch run one after another, in that order too;
// those of a cooperative launch all at once. Shared memory starts as NaN and every array of it is an allocation of its
// own, so that AddressSanitizer sees a step beyond its end.
//
// What it cannot show: memory ordering between real cores, bank conflicts, speed.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#define __device__
#define __forceinline__ inline

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
};
inline Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace simt {

constexpr unsigned WARP = 32;
/// What a block may share on a device, in bytes: without and with leave.
constexpr unsigned SHARED_DEFAULT = 48 << 10, SHARED_MOST = 227 << 10;

/// In which order threads run: as numbered, backwards, or shuffled anew each time around.
enum class Order { forward, reverse, shuffled };

/// A kernel that was found in the source.
struct Kernel {
    const char *name;
    size_t params_size;
    unsigned threads;
    void (*call)(const void *params);
    /// What its SHARED arrays were seen to take so far.
    size_t shared_bytes = 0;
};

inline std::vector<Kernel> &kernels() {
    static std::vector<Kernel> all;
    return all;
}

struct Launch {
    Dim3 grid, block;
    /// Of DYNAMIC_SHARED.
    size_t shared_bytes = 0;
    /// All blocks are there at the same time and may wait for each other.
    bool cooperative = false;
    Order order = Order::forward;
};

/// Runs a kernel over a grid. Returns what went wrong, or nothing. One launch at a time.
std::string launch(Kernel &kernel, const void *params, const Launch &launch);

/// Lets other threads run. A wait that polls must call it; `wait_for` is better, which sees that nobody will come.
void yield();
/// Sometimes lets other threads run, when they run in shuffled order.
void interleave();
/// Waits until all threads of the block wait here.
void block_barrier();
/// Waits until a counter, which may wrap, has come to `target`.
void wait_for(const volatile unsigned *counter, unsigned target, const char *place);
/// Hands `value` to the lanes of `mask`, all of which must come, and returns what lane `from` handed in.
uint64_t warp_exchange(unsigned mask, uint64_t value, unsigned from);
/// The same; returns what every lane handed in, until this thread's next warp operation.
const uint64_t *warp_gather(unsigned mask, uint64_t value);
/// The lanes of `mask`, all of which must come, whose `predicate` holds.
unsigned warp_ballot(unsigned mask, bool predicate);
/// This thread's place in its warp.
unsigned lane();
/// Memory that the block shares, the same for each `site` in the source.
void *shared(const void *site, size_t bytes);
/// The memory that the block shares and that the launch gave a size.
void *dynamic_shared();

template <class T>
T shuffle(unsigned mask, T value, unsigned from) {
    static_assert(sizeof(T) <= sizeof(uint64_t));
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    bits = warp_exchange(mask, bits, from % WARP);
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace simt

#define KERNEL(kernel, block_threads, Params, function)                                        \
    static const bool kernel##_is_known = (simt::kernels().push_back({#kernel, sizeof(Params), \
        block_threads, [](const void *p) { function(*static_cast<const Params *>(p)); }}), true);
#define SHARED(type, name, count)   \
    static const char name##_site = 0; \
    type *const name = static_cast<type *>(simt::shared(&name##_site, sizeof(type) * (count)))
#define DYNAMIC_SHARED(type, name) type *const name = static_cast<type *>(simt::dynamic_shared())

#define INTERLEAVE() simt::interleave()

inline void __syncthreads() { simt::block_barrier(); }
inline void __syncwarp(unsigned mask = ~0u) { simt::warp_ballot(mask, true); }
inline void __threadfence() {}
inline unsigned __ballot_sync(unsigned mask, bool predicate) { return simt::warp_ballot(mask, predicate); }
inline bool __any_sync(unsigned mask, bool predicate) { return simt::warp_ballot(mask, predicate) != 0; }
inline bool __all_sync(unsigned mask, bool predicate) { return simt::warp_ballot(mask, predicate) == mask; }
template <class T>
T __shfl_sync(unsigned mask, T value, unsigned from) {
    return simt::shuffle(mask, value, from);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, unsigned bits) {
    return simt::shuffle(mask, value, simt::lane() ^ bits);
}
/// Beyond the last lane a thread gets its own value back, as on the device.
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by) {
    const unsigned from = simt::lane() + by;
    return simt::shuffle(mask, value, from < simt::WARP ? from : simt::lane());
}

// Of one CPU thread, so nothing comes in between.
inline unsigned atomicAdd(unsigned *at, unsigned value) {
    const unsigned before = *at;
    *at = before + value;
    return before;
}
inline unsigned atomicMax(unsigned *at, unsigned value) {
    const unsigned before = *at;
    *at = before < value ? value : before;
    return before;
}
inline unsigned atomicExch(unsigned *at, unsigned value) {
    const unsigned before = *at;
    *at = value;
    return before;
}
inline unsigned atomicCAS(unsigned *at, unsigned expected, unsigned value) {
    const unsigned before = *at;
    if (before == expected) *at = value;
    return before;
}
inline unsigned long long atomicMax(unsigned long long *at, unsigned long long value) {
    const unsigned long long before = *at;
    *at = before < value ? value : before;
    return before;
}

inline float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}
inline float __int_as_float(int bits) { return __uint_as_float(unsigned(bits)); }
inline int __float_as_int(float x) { return int(__float_as_uint(x)); }
/// To the nearest integer, ties to even.
inline int __float2int_rn(float x) { return int(std::nearbyintf(x)); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
/// Four products of signed bytes, added to `sum`.
inline int __dp4a(int a, int b, int sum) {
    unsigned total = unsigned(sum);
    for (unsigned i = 0; i < 32; i += 8) {
        const int left = int8_t(unsigned(a) >> i), right = int8_t(unsigned(b) >> i);
        total += unsigned(left * right);
    }
    return int(total);
}
