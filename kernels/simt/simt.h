// CUDA's execution model on one CPU thread, for tests: what common.cuh asks of the compiler when SPIKELET_SIMT is defined.
//
// Every CUDA thread of a block is a fiber that runs until it waits for others, or to an INTERLEAVE. Which one runs next
// is a parameter: a result that depends on it is a race. Blocks run one after another, in that order too. Shared memory starts as NaN and
// every array of it is an allocation of its own, so that AddressSanitizer sees a step beyond its end.
//
// What it cannot show: memory ordering between real cores, bank conflicts, speed. What it does not have yet (tensor
// cores, asynchronous copies, a barrier over the grid) is added here when a kernel needs it.
#pragma once

#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <ucontext.h>
#include <vector>

#define __device__
#define __forceinline__ inline

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
};
inline Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace simt {

constexpr unsigned WARP = 32;

/// In which order threads run: as numbered, backwards, or shuffled anew each time around.
enum class Order { forward, reverse, shuffled };

/// A kernel that was found in the source.
struct Kernel {
    const char *name;
    size_t params_size;
    unsigned threads;
    void (*call)(const void *params);
};

inline std::vector<Kernel> &kernels() {
    static std::vector<Kernel> all;
    return all;
}

/// Runs a kernel over a grid. Returns what went wrong, or nothing.
std::string launch(const Kernel &kernel, const void *params, Dim3 grid, Dim3 block, Order order);

/// Lets other threads run.
void yield();
/// Sometimes lets other threads run, when they run in shuffled order.
void interleave();
/// Waits until all threads of the block wait here.
void block_barrier();
/// Hands `value` to the lanes of `mask`, all of which must come, and returns what lane `from` handed in.
uint64_t warp_exchange(unsigned mask, uint64_t value, unsigned from);
/// The lanes of `mask`, all of which must come, whose `predicate` holds.
unsigned warp_ballot(unsigned mask, bool predicate);
/// This thread's place in its warp.
unsigned lane();
/// Memory that the block shares, the same for each `site` in the source.
void *shared(const void *site, size_t bytes);

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

#define INTERLEAVE() simt::interleave()

inline void __syncthreads() { simt::block_barrier(); }
inline void __syncwarp(unsigned mask = ~0u) { simt::warp_ballot(mask, true); }
inline unsigned __ballot_sync(unsigned mask, bool predicate) { return simt::warp_ballot(mask, predicate); }
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
