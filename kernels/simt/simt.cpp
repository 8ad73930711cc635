// The scheduler of simt.h.
#include "simt/simt.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <random>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {
namespace {

constexpr size_t STACK = 128 << 10;

struct Fiber {
    enum { fresh, suspended, finished } status = fresh;
    const char *waits_at = nullptr;
    Dim3 thread;
    jmp_buf here;
    ucontext_t start;
    std::unique_ptr<char[]> stack{new char[STACK]};
};

/// The lanes that have come to a collective operation of one mask, and what they brought. The next operation uses the
/// other half of `values`: a lane can be one operation ahead of another, never two.
struct Meeting {
    unsigned arrived = 0, generation = 0;
    uint64_t values[2][WARP];
};

struct Block {
    std::vector<Fiber> fibers;
    /// By warp and mask: parts of a warp may meet by themselves.
    std::map<std::pair<unsigned, unsigned>, Meeting> meetings;
    std::map<const void *, std::pair<std::unique_ptr<char[]>, size_t>> shared;
    unsigned at_barrier = 0, generation = 0;
};

// One launch at a time, on one CPU thread.
const Kernel *running;
const void *running_params;
Block *block;
unsigned current;
jmp_buf scheduler;
ucontext_t scheduler_context;
Order running_order;
std::mt19937 chance;
// Grows with everything that happens, so that a round of the scheduler in which nothing happens is seen.
uint64_t events;
std::string failure;

/// Tells AddressSanitizer which stack is in use: null is the CPU thread's own.
void enter_stack(Fiber *to) {
#if defined(__SANITIZE_ADDRESS__)
    static const void *own_stack;
    static size_t own_size;
    if (to) {
        __sanitizer_start_switch_fiber(nullptr, to->stack.get(), STACK);
        __sanitizer_finish_switch_fiber(nullptr, &own_stack, &own_size);
    } else {
        __sanitizer_start_switch_fiber(nullptr, own_stack, own_size);
        __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
    }
#else
    (void)to;
#endif
}

void run_fiber() {
    running->call(running_params);
    block->fibers[current].status = Fiber::finished;
    ++events;
    _longjmp(scheduler, 1);
}

void resume(unsigned index) {
    current = index;
    Fiber &fiber = block->fibers[index];
    threadIdx = fiber.thread;
    if (_setjmp(scheduler) == 0) {
        enter_stack(&fiber);
        if (fiber.status == Fiber::suspended) _longjmp(fiber.here, 1);
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = fiber.stack.get();
        fiber.start.uc_stack.ss_size = STACK;
        fiber.start.uc_link = nullptr;
        makecontext(&fiber.start, run_fiber, 0);
        swapcontext(&scheduler_context, &fiber.start);
    }
    enter_stack(nullptr);
}

/// Waits while `waiting()` holds.
template <class Condition>
void wait_at(const char *place, Condition waiting) {
    Fiber &fiber = block->fibers[current];
    fiber.waits_at = place;
    while (waiting()) yield();
    fiber.waits_at = nullptr;
}

/// Brings `value` to the warp and waits for the other lanes of `mask`. Returns what all have brought.
const uint64_t *warp_meet(unsigned mask, uint64_t value) {
    Meeting &meeting = block->meetings[{current / WARP, mask}];
    if (!(mask >> lane() & 1)) failure = "a lane takes part that is not in its mask";
    const unsigned generation = meeting.generation;
    uint64_t *values = meeting.values[generation % 2];
    if (!meeting.arrived) std::fill_n(values, WARP, ~uint64_t(0));
    values[lane()] = value;
    meeting.arrived |= 1u << lane();
    ++events;
    if (meeting.arrived == mask) {
        meeting.arrived = 0;
        ++meeting.generation;
    }
    wait_at("a warp operation", [&] { return meeting.generation == generation; });
    return values;
}

void shuffle(std::vector<unsigned> &numbers) {
    if (running_order == Order::shuffled) std::shuffle(numbers.begin(), numbers.end(), chance);
}

std::vector<unsigned> numbers(unsigned count) {
    std::vector<unsigned> all(count);
    std::iota(all.begin(), all.end(), 0);
    if (running_order == Order::reverse) std::reverse(all.begin(), all.end());
    return all;
}

/// Runs the threads of a block to their ends.
void run_block(Dim3 dims) {
    const unsigned threads = dims.x * dims.y * dims.z;
    block->shared.clear();
    block->meetings.clear();
    block->at_barrier = 0;
    block->fibers.resize(threads);
    for (unsigned i = 0; i < threads; ++i) {
        Fiber &fiber = block->fibers[i];
        fiber.status = Fiber::fresh;
        fiber.waits_at = nullptr;
        fiber.thread = {i % dims.x, i / dims.x % dims.y, i / dims.x / dims.y};
    }
    std::vector<unsigned> turns = numbers(threads);
    for (bool done = false; !done && failure.empty();) {
        const uint64_t before = events;
        shuffle(turns);
        done = true;
        for (unsigned i : turns) {
            if (block->fibers[i].status == Fiber::finished) continue;
            resume(i);
            done = done && block->fibers[i].status == Fiber::finished;
            if (!failure.empty()) return;
        }
        if (done || events != before) continue;
        unsigned waiting = 0;
        const char *place = nullptr;
        for (const Fiber &fiber : block->fibers) {
            if (fiber.status == Fiber::finished) continue;
            ++waiting;
            place = fiber.waits_at;
        }
        failure = std::to_string(waiting) + " of " + std::to_string(threads) + " threads wait for ever at " + place;
    }
}

}  // namespace

void yield() {
    Fiber &fiber = block->fibers[current];
    fiber.status = Fiber::suspended;
    if (_setjmp(fiber.here) == 0) _longjmp(scheduler, 1);
}

void interleave() {
    if (running_order != Order::shuffled || chance() % 4) return;
    ++events;
    yield();
}

void block_barrier() {
    const unsigned generation = block->generation;
    ++events;
    if (++block->at_barrier == block->fibers.size()) {
        block->at_barrier = 0;
        ++block->generation;
    }
    wait_at("a barrier", [&] { return block->generation == generation; });
}

uint64_t warp_exchange(unsigned mask, uint64_t value, unsigned from) { return warp_meet(mask, value)[from]; }

unsigned warp_ballot(unsigned mask, bool predicate) {
    const uint64_t *values = warp_meet(mask, predicate);
    unsigned ballot = 0;
    for (unsigned i = 0; i < WARP; ++i) ballot |= unsigned((mask >> i & 1) && values[i]) << i;
    return ballot;
}

unsigned lane() { return current % WARP; }

void *shared(const void *site, size_t bytes) {
    auto &[memory, size] = block->shared[site];
    if (!memory) {
        memory.reset(new char[bytes]);
        size = bytes;
        std::memset(memory.get(), 0xff, bytes);
    }
    return memory.get();
}

std::string launch(const Kernel &kernel, const void *params, Dim3 grid, Dim3 dims, Order order) {
    Block state;
    running_order = order;
    chance.seed(7);
    running = &kernel;
    running_params = params;
    block = &state;
    failure.clear();
    gridDim = grid;
    blockDim = dims;
    std::vector<unsigned> blocks = numbers(grid.x * grid.y * grid.z);
    shuffle(blocks);
    for (unsigned i : blocks) {
        blockIdx = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
        run_block(dims);
        if (!failure.empty()) {
            return std::string(kernel.name) + ", block (" + std::to_string(blockIdx.x) + ", " +
                   std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) + "): " + failure;
        }
    }
    return "";
}

}  // namespace simt
