// Stacks and the switch between them: what the scheduler needs of the processor.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) && !defined(__aarch64__)
#define SIMT_UCONTEXT
#include <ucontext.h>
#endif

namespace simt {

/// A stack that code can be suspended on: a fiber's, or the CPU thread's own (which has no memory here).
struct Stack {
    char *lowest = nullptr;
    size_t size = 0;
#if defined(SIMT_UCONTEXT)
    ucontext_t registers;
#else
    void *pointer = nullptr;
#endif
    /// AddressSanitizer's notes about it while something else runs.
    void *notes = nullptr;
};

/// A stack that nothing runs on, with a page below it that may not be touched. `entry`, which must not return, starts
/// there at the first switch. Stacks are kept for the whole run of the program.
Stack *take_stack(void (*entry)());
/// Nothing will run on it any more; the caller may, until it switches away.
void give_stack(Stack *stack);

/// Suspends what runs on `from` and goes on with what is suspended on `to`. `for_ever`: nobody will come back.
void switch_stacks(Stack &from, Stack &to, bool for_ever);
/// To be called first by an `entry`; `from` is the stack that was left for it.
void entered(Stack &from);

}  // namespace simt
