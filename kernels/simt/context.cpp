// Stacks and the switch between them.
//
// A switch saves what a called function has to leave as it was and nothing else, in some ten instructions. The system's
// swapcontext, which serves other processors, also asks the kernel about signals: 50 times slower.
#include "simt/context.h"

#include <cstdint>
#include <cstring>
#include <sys/mman.h>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
asm(R"(
    .text
    .hidden simt_switch
    .globl simt_switch
    .type simt_switch, @function
    .p2align 4
simt_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size simt_switch, . - simt_switch
)");
#elif defined(__aarch64__)
asm(R"(
    .text
    .hidden simt_switch
    .globl simt_switch
    .type simt_switch, %function
    .p2align 4
simt_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
    .size simt_switch, . - simt_switch
)");
#endif

#if !defined(SIMT_UCONTEXT)
extern "C" void simt_switch(void **save, void *load);
#endif

namespace simt {
namespace {

constexpr size_t PAGE = 64 << 10;  // of every system
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t STACK = 256 << 10;  // its frames are large
#else
constexpr size_t STACK = 128 << 10;
#endif

std::vector<Stack *> idle;
unsigned made;

Stack *make_stack() {
    void *memory = mmap(nullptr, PAGE + STACK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    auto *stack = new Stack;
    // The tops lie at different places of their pages, or all would compete for the same lines of the cache.
    const size_t shift = made++ % 32 * 128;
    stack->lowest = static_cast<char *>(memory) + PAGE;
    stack->size = STACK - shift;
    if (mprotect(stack->lowest, STACK, PROT_READ | PROT_WRITE)) return nullptr;
    return stack;
}

}  // namespace

Stack *take_stack(void (*entry)()) {
    if (idle.empty()) idle.push_back(make_stack());
    Stack *stack = idle.back();
    if (!stack) __builtin_trap();
    idle.pop_back();
#if defined(__SANITIZE_ADDRESS__)
    // Marks of a launch that was given up.
    __asan_unpoison_memory_region(stack->lowest, stack->size);
#endif
#if defined(SIMT_UCONTEXT)
    getcontext(&stack->registers);
    stack->registers.uc_stack.ss_sp = stack->lowest;
    stack->registers.uc_stack.ss_size = stack->size;
    stack->registers.uc_link = nullptr;
    makecontext(&stack->registers, entry, 0);
#else
    auto *top = reinterpret_cast<void **>(stack->lowest + stack->size);
#if defined(__x86_64__)
    // Six registers, where to return to, and no caller above: at `entry` the stack is as after a call.
    top -= 8;
    std::memset(top, 0, 8 * sizeof *top);
    top[6] = reinterpret_cast<void *>(entry);
#else
    top -= 20;
    std::memset(top, 0, 20 * sizeof *top);
    top[11] = reinterpret_cast<void *>(entry);
#endif
    stack->pointer = top;
#endif
    stack->notes = nullptr;
    return stack;
}

void give_stack(Stack *stack) { idle.push_back(stack); }

void switch_stacks(Stack &from, Stack &to, bool for_ever) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(for_ever ? nullptr : &from.notes, to.lowest, to.size);
#else
    (void)for_ever;
#endif
#if defined(SIMT_UCONTEXT)
    swapcontext(&from.registers, &to.registers);
#else
    simt_switch(&from.pointer, to.pointer);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(from.notes, nullptr, nullptr);
#endif
}

void entered(Stack &from) {
#if defined(__SANITIZE_ADDRESS__)
    const void *lowest;
    size_t size;
    __sanitizer_finish_switch_fiber(nullptr, &lowest, &size);
    // Of the CPU thread's own stack nobody else knows where it lies.
    if (!from.lowest) {
        from.lowest = static_cast<char *>(const_cast<void *>(lowest));
        from.size = size;
    }
#else
    (void)from;
#endif
}

}  // namespace simt
