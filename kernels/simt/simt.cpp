// The scheduler of simt.h.
//
// A thread that never waits costs a call: the stack on which one has ended serves the next that begins. A thread that
// waits leaves its stack and goes straight to another one that can run, which is found without switching to it.
#include "simt/simt.h"

#include "simt/context.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>

namespace simt {
namespace {

struct Block;

struct Thread {
    enum { fresh, started, finished } status = fresh;
    Dim3 index;
    /// In its block.
    unsigned number = 0;
    Block *block = nullptr;
    Stack *stack = nullptr;
    /// Waits until this has come to `target`; null: for nothing.
    const volatile unsigned *counter = nullptr;
    unsigned target = 0;
    const char *place = nullptr;
};

/// The lanes that have come to a collective operation of one mask, and what they brought. The next operation uses the
/// other half of `values`: a lane can be one operation ahead of another, never two.
struct Meeting {
    unsigned mask, arrived = 0, generation = 0;
    uint64_t values[2][WARP];

    explicit Meeting(unsigned mask) : mask(mask) {}
};

struct Free {
    void operator()(void *memory) const { std::free(memory); }
};

/// Memory that starts as NaN, with its own end.
struct Array {
    const void *site;
    size_t bytes;
    std::unique_ptr<void, Free> memory;

    Array(const void *site, size_t bytes) : site(site), bytes(bytes) {
        void *made = nullptr;
        if (posix_memalign(&made, 128, bytes)) __builtin_trap();
        memory.reset(std::memset(made, 0xff, bytes));
    }
};

struct Block {
    Dim3 index;
    unsigned threads;
    unsigned at_barrier = 0, generation = 0;
    /// By warp: parts of it may meet by themselves.
    std::vector<std::vector<std::unique_ptr<Meeting>>> warps;
    std::vector<Array> shared;
    size_t shared_bytes = 0;
};

// One launch at a time, on one CPU thread.
Kernel *running;
const void *running_params;
Launch shape;
Thread *current;
Stack *own_stack;
/// The blocks that are there, and their threads. Kept from launch to launch for what they have allocated.
std::vector<Block> blocks;
std::vector<Thread> threads;
/// The unfinished threads in the order in which they are asked whether they can go on, and how far that has come.
std::vector<unsigned> turns;
size_t position, unfinished;
bool somebody_ran;
std::mt19937 chance;
std::string failure;

const char dynamic_site = 0;

bool can_run(const Thread &thread) {
    return thread.status != Thread::finished && (!thread.counter || int(*thread.counter - thread.target) >= 0);
}

void report_a_deadlock() {
    unsigned waiting = 0;
    const char *place = "";
    for (const Thread &thread : threads) {
        if (thread.status == Thread::finished) continue;
        ++waiting;
        place = thread.place;
        blockIdx = thread.block->index;
    }
    failure = std::to_string(waiting) + " of " + std::to_string(threads.size()) + " threads wait for ever at " + place;
}

/// The thread to go on with; null when all have finished or something went wrong.
Thread *choose() {
    while (unfinished && failure.empty()) {
        if (position == turns.size()) {
            if (!somebody_ran) {
                report_a_deadlock();
                return nullptr;
            }
            somebody_ran = false;
            position = 0;
            const auto ended = [](unsigned i) { return threads[i].status == Thread::finished; };
            turns.erase(std::remove_if(turns.begin(), turns.end(), ended), turns.end());
            if (shape.order == Order::shuffled) std::shuffle(turns.begin(), turns.end(), chance);
        }
        Thread &thread = threads[turns[position++]];
        if (!can_run(thread)) continue;
        somebody_ran = true;
        return &thread;
    }
    return nullptr;
}

/// Says that `thread` is the one that runs.
void make_current(Thread &thread) {
    current = &thread;
    thread.counter = nullptr;
    threadIdx = thread.index;
    blockIdx = thread.block->index;
}

void run_fibers();

/// Leaves the stack `from` and goes on with `next`, or with launch() if there is nothing more to do.
void go_on_with(Thread *next, Stack &from, bool for_ever) {
    if (!next) {
        switch_stacks(from, *own_stack, for_ever);
        return;
    }
    make_current(*next);
    if (next->status == Thread::fresh) {
        next->status = Thread::started;
        next->stack = take_stack(run_fibers);
    }
    switch_stacks(from, *next->stack, for_ever);
}

/// What runs on a fiber's stack: threads from their beginning, one after the other.
void run_fibers() {
    entered(*own_stack);
    for (;;) {
        running->call(running_params);
        Stack *stack = current->stack;
        current->status = Thread::finished;
        current->stack = nullptr;
        --unfinished;
        Thread *next = choose();
        if (next && next->status == Thread::fresh) {
            make_current(*next);
            next->status = Thread::started;
            next->stack = stack;
            continue;
        }
        give_stack(stack);
        go_on_with(next, *stack, true);
        __builtin_trap();
    }
}

/// Lets others run until this thread can go on and its turn comes.
void give_way() {
    Thread *self = current;
    Thread *next = choose();
    if (next == self) {
        make_current(*self);
    } else {
        go_on_with(next, *self->stack, false);
    }
}

void shuffle(std::vector<unsigned> &numbers) {
    if (shape.order == Order::shuffled) std::shuffle(numbers.begin(), numbers.end(), chance);
}

std::vector<unsigned> numbers(size_t count) {
    std::vector<unsigned> all(count);
    std::iota(all.begin(), all.end(), 0);
    if (shape.order == Order::reverse) std::reverse(all.begin(), all.end());
    return all;
}

/// Runs the threads of `count` blocks to their ends, the blocks being there at the same time.
void run_blocks(const unsigned *numbered, size_t count) {
    const Dim3 dims = shape.block;
    const unsigned each = dims.x * dims.y * dims.z;
    blocks.resize(count);
    threads.resize(count * each);
    for (size_t b = 0; b < count; ++b) {
        Block &block = blocks[b];
        const unsigned i = numbered[b];
        block.index = {i % shape.grid.x, i / shape.grid.x % shape.grid.y, i / shape.grid.x / shape.grid.y};
        block.threads = each;
        block.at_barrier = block.generation = 0;
        block.warps.resize((each + WARP - 1) / WARP);
        for (auto &warp : block.warps) {
            for (auto &meeting : warp) meeting->arrived = 0;
        }
        for (unsigned t = 0; t < each; ++t) {
            Thread &thread = threads[b * each + t] = Thread();
            thread.index = {t % dims.x, t / dims.x % dims.y, t / dims.x / dims.y};
            thread.number = t;
            thread.block = &block;
        }
    }
    turns = numbers(threads.size());
    shuffle(turns);
    position = 0;
    unfinished = threads.size();
    somebody_ran = false;
    Stack own;
    own_stack = &own;
    go_on_with(choose(), own, false);
    for (Block &block : blocks) {
        running->shared_bytes = std::max(running->shared_bytes, block.shared_bytes);
        block.shared.clear();
        block.shared_bytes = 0;
    }
    // Of a launch that was given up.
    for (Thread &thread : threads) {
        if (thread.stack) give_stack(thread.stack);
        thread.stack = nullptr;
    }
}

Meeting &meeting_of(unsigned mask) {
    auto &meetings = current->block->warps[current->number / WARP];
    for (const auto &meeting : meetings) {
        if (meeting->mask == mask) return *meeting;
    }
    return *meetings.emplace_back(new Meeting(mask));
}

}  // namespace

void yield() { give_way(); }

void interleave() {
    if (shape.order == Order::shuffled && chance() % 4 == 0) give_way();
}

void wait_for(const volatile unsigned *counter, unsigned target, const char *place) {
    while (int(*counter - target) < 0) {
        current->counter = counter;
        current->target = target;
        current->place = place;
        give_way();
    }
}

void block_barrier() {
    Block &block = *current->block;
    const unsigned after = block.generation + 1;
    if (++block.at_barrier == block.threads) {
        block.at_barrier = 0;
        block.generation = after;
    }
    wait_for(&block.generation, after, "a barrier");
}

const uint64_t *warp_gather(unsigned mask, uint64_t value) {
    if (!(mask >> lane() & 1)) {
        failure = "a lane takes part that is not in its mask";
        give_way();
    }
    Meeting &meeting = meeting_of(mask);
    const unsigned after = meeting.generation + 1;
    uint64_t *values = meeting.values[after % 2];
    if (!meeting.arrived && mask != ~0u) std::fill_n(values, WARP, ~uint64_t(0));
    values[lane()] = value;
    meeting.arrived |= 1u << lane();
    if (meeting.arrived == mask) {
        meeting.arrived = 0;
        meeting.generation = after;
    }
    wait_for(&meeting.generation, after, "a warp operation");
    return values;
}

uint64_t warp_exchange(unsigned mask, uint64_t value, unsigned from) { return warp_gather(mask, value)[from]; }

unsigned warp_ballot(unsigned mask, bool predicate) {
    const uint64_t *values = warp_gather(mask, predicate);
    unsigned ballot = 0;
    for (unsigned i = 0; i < WARP; ++i) ballot |= unsigned((mask >> i & 1) && values[i]) << i;
    return ballot;
}

unsigned lane() { return current->number % WARP; }

void *shared(const void *site, size_t bytes) {
    Block &block = *current->block;
    for (const Array &array : block.shared) {
        if (array.site == site) return array.memory.get();
    }
    block.shared.emplace_back(site, bytes);
    if (site != &dynamic_site) block.shared_bytes += bytes;
    if (block.shared_bytes > SHARED_DEFAULT) {
        failure = "its SHARED arrays take more than " + std::to_string(SHARED_DEFAULT) + " bytes";
        give_way();
    }
    if (block.shared_bytes + shape.shared_bytes > SHARED_MOST) {
        failure = "a block shares more than " + std::to_string(SHARED_MOST) + " bytes";
        give_way();
    }
    return block.shared.back().memory.get();
}

void *dynamic_shared() { return shared(&dynamic_site, shape.shared_bytes); }

std::string launch(Kernel &kernel, const void *params, const Launch &wanted) {
    shape = wanted;
    chance.seed(7);
    running = &kernel;
    running_params = params;
    failure.clear();
    gridDim = shape.grid;
    blockDim = shape.block;
    std::vector<unsigned> order = numbers(size_t(shape.grid.x) * shape.grid.y * shape.grid.z);
    shuffle(order);
    const size_t together = shape.cooperative ? order.size() : 1;
    for (size_t first = 0; first < order.size() && failure.empty(); first += together) {
        run_blocks(&order[first], together);
    }
    if (failure.empty()) return "";
    return std::string(kernel.name) + ", block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
           std::to_string(blockIdx.z) + "): " + failure;
}

}  // namespace simt
