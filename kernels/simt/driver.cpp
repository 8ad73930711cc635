// A CUDA driver that runs kernels under simt.h: the calls of libcuda.so that spikelet makes, with their own signatures.
//
// Compiled together with a .cu file into a shared library which the real launcher loads in place of libcuda.so.1, so
// that the tests on a machine without a GPU go through every line between a tensor and the kernel's arithmetic.
// Device memory is host memory.
#include "simt/simt.h"

#include <cstdio>

namespace {

enum Result { SUCCESS = 0, INVALID_VALUE = 1, INVALID_PTX = 218, NOT_FOUND = 500, LAUNCH_FAILED = 719 };

struct Module {
    std::string ptx;
};

simt::Order order = simt::Order::forward;
std::string last_failure;

constexpr int ERROR_LOG_BUFFER = 5, ERROR_LOG_BUFFER_BYTES = 6;

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

/// Of the emulator, not of CUDA: the order of threads in the launches that follow.
EXPORT void simt_set_order(int wanted) { order = simt::Order(wanted); }
/// Of the emulator, not of CUDA: what the last LAUNCH_FAILED was about.
EXPORT const char *simt_failure() { return last_failure.c_str(); }

EXPORT Result cuInit(unsigned) { return SUCCESS; }

EXPORT Result cuGetErrorName(Result code, const char **name) {
    switch (code) {
        case SUCCESS: *name = "CUDA_SUCCESS"; return SUCCESS;
        case INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; return SUCCESS;
        case INVALID_PTX: *name = "CUDA_ERROR_INVALID_PTX"; return SUCCESS;
        case NOT_FOUND: *name = "CUDA_ERROR_NOT_FOUND"; return SUCCESS;
        case LAUNCH_FAILED: *name = "CUDA_ERROR_LAUNCH_FAILED"; return SUCCESS;
    }
    return INVALID_VALUE;
}

EXPORT Result cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return SUCCESS;
}
EXPORT Result cuDevicePrimaryCtxRetain(void **context, int device) {
    *context = reinterpret_cast<void *>(intptr_t(device + 1));
    return SUCCESS;
}
EXPORT Result cuCtxPushCurrent_v2(void *context) { return context ? SUCCESS : INVALID_VALUE; }
EXPORT Result cuCtxPopCurrent_v2(void **) { return SUCCESS; }

EXPORT Result cuModuleLoadDataEx(void **module, const char *ptx, unsigned count, const int *options, void **values) {
    if (std::strstr(ptx, ".visible .entry")) {
        *module = new Module{ptx};
        return SUCCESS;
    }
    char *log = nullptr;
    size_t size = 0;
    for (unsigned i = 0; i < count; ++i) {
        if (options[i] == ERROR_LOG_BUFFER) log = static_cast<char *>(values[i]);
        if (options[i] == ERROR_LOG_BUFFER_BYTES) size = reinterpret_cast<uintptr_t>(values[i]);
    }
    if (log) std::snprintf(log, size, "ptxas fatal: no entry in %zu bytes", std::strlen(ptx));
    return INVALID_PTX;
}

EXPORT Result cuModuleGetFunction(const simt::Kernel **function, const Module *module, const char *name) {
    for (const simt::Kernel &kernel : simt::kernels()) {
        const bool in_ptx = module->ptx.find(std::string(".entry ") + name + "(") != std::string::npos;
        if (std::string(name) == kernel.name && in_ptx) {
            *function = &kernel;
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}

EXPORT Result cuLaunchKernel(const simt::Kernel *kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                             unsigned block_y, unsigned block_z, unsigned, void *, void **params, void **) {
    // Limits of every device, and what the compiler was told about this kernel.
    const unsigned threads = block_x * block_y * block_z;
    const bool fits = grid_x && grid_y && grid_z && grid_x <= 0x7fffffff && grid_y <= 0xffff && grid_z <= 0xffff;
    if (!fits || threads == 0 || threads > kernel->threads) return INVALID_VALUE;
    // A copy, because the launch is asynchronous on a device, and with its own end for AddressSanitizer.
    const std::unique_ptr<char[]> copy(new char[kernel->params_size]);
    std::memcpy(copy.get(), params[0], kernel->params_size);
    last_failure = simt::launch(*kernel, copy.get(), {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, order);
    return last_failure.empty() ? SUCCESS : LAUNCH_FAILED;
}
