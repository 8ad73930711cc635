// Of the emulated driver: modules, kernels, launches.
#include "simt/driver.h"

#include <cstdio>
#include <cstdlib>

namespace simt {

struct Function {
    Kernel *kernel;
    unsigned most_dynamic_bytes = SHARED_DEFAULT;
};

struct Module {
    std::string ptx;
    std::map<std::string, std::unique_ptr<Function>> functions;
};

namespace {

constexpr int ERROR_LOG_BUFFER = 5, ERROR_LOG_BUFFER_BYTES = 6;

/// The number behind `word` at the beginning of a line, 0 if there is none; its point is left out.
int stated(const std::string &ptx, const char *word) {
    const size_t at = ("\n" + ptx).find(std::string("\n") + word);
    int major = 0, minor = 0;
    if (at == std::string::npos) return 0;
    std::sscanf(ptx.c_str() + at + std::strlen(word), "%d.%d", &major, &minor);
    return std::strchr(word, '_') ? major : 10 * major + minor;
}

/// What a driver's compiler would say about it: nothing if it is fine.
Result judge(const std::string &ptx, std::string &log) {
    if (setting("REFUSE_PTX")) return log = "ptxas fatal: refused, as SIMT_REFUSE_PTX asks", INVALID_PTX;
    if (ptx.find(".visible .entry") == std::string::npos) {
        return log = "ptxas fatal: no entry in " + std::to_string(ptx.size()) + " bytes", INVALID_PTX;
    }
    // Driver 12.4 knows PTX 8.4, and so on.
    const int driver = int(number("DRIVER_VERSION", 12080)), version = stated(ptx, ".version ");
    if (version > driver / 100 - 40 + driver % 100 / 10) {
        return log = "ptxas fatal: Unsupported .version " + std::to_string(version / 10) + "." + std::to_string(version % 10),
               UNSUPPORTED_PTX_VERSION;
    }
    if (stated(ptx, ".target sm_") > capability()) {
        return log = "ptxas fatal: .target is newer than the device", NO_BINARY_FOR_GPU;
    }
    return SUCCESS;
}

/// How many blocks a multiprocessor holds at a time. Registers are not known.
unsigned resident(const Function &function, unsigned threads, size_t dynamic_bytes) {
    const size_t shared = function.kernel->shared_bytes + dynamic_bytes + 1024;
    const unsigned warps = (threads + WARP - 1) / WARP;
    if (!threads || threads > function.kernel->threads || dynamic_bytes > function.most_dynamic_bytes) return 0;
    return unsigned(std::min({size_t(32), size_t(64 / warps), (size_t(228) << 10) / shared}));
}

Order order() {
    const std::string name = setting("ORDER") ? setting("ORDER") : "";
    return name == "reverse" ? Order::reverse : name == "shuffled" ? Order::shuffled : Order::forward;
}

Result run(Device &device, Kernel &kernel, const void *params, Launch launch) {
    if (const Result lost = state_of(device)) return lost;
    if (setting("LOST_AFTER") && ++device.launches > number("LOST_AFTER", 0)) return device.lost = ILLEGAL_ADDRESS;
    launch.order = order();
    const std::string failure = simt::launch(kernel, params, launch);
    note_failure(failure);
    return failure.empty() ? SUCCESS : LAUNCH_FAILED;
}

Result launch(Function &function, Launch launch, Stream *handle, void **params) {
    Device *device;
    Stream *stream;
    if (const Result failed = find_stream(handle, device, stream)) return failed;
    // Limits of every device, and what the compiler was told about this kernel.
    const Dim3 grid = launch.grid, block = launch.block;
    const uint64_t threads = uint64_t(block.x) * block.y * block.z;
    const bool fits = grid.x && grid.y && grid.z && grid.x <= 0x7fffffff && grid.y <= 0xffff && grid.z <= 0xffff;
    if (!fits || threads == 0 || threads > function.kernel->threads) return INVALID_VALUE;
    if (launch.shared_bytes > function.most_dynamic_bytes || !params) return INVALID_VALUE;
    if (launch.cooperative) {
        const uint64_t most = uint64_t(multiprocessors()) * resident(function, unsigned(threads), launch.shared_bytes);
        if (uint64_t(grid.x) * grid.y * grid.z > most) return COOPERATIVE_LAUNCH_TOO_LARGE;
    }
    // A copy, because the launch is asynchronous on a device, and with its own end for AddressSanitizer.
    const size_t size = function.kernel->params_size;
    void *copy = nullptr;
    if (posix_memalign(&copy, 64, size)) return OUT_OF_MEMORY;
    const std::shared_ptr<void> owned(std::memcpy(copy, params[0], size), std::free);
    Kernel *kernel = function.kernel;
    return submit(*stream, [=] { return run(*device, *kernel, owned.get(), launch); });
}

}  // namespace
}  // namespace simt

using namespace simt;

EXPORT Result cuModuleLoadDataEx(Module **module, const char *ptx, unsigned count, const int *options, void **values) {
    LOCKED;
    Device *device;
    if (const Result failed = current_device(device)) return failed;
    std::string log;
    const Result judged = judge(ptx, log);
    if (!judged) {
        *module = new Module{ptx, {}};
        return SUCCESS;
    }
    char *buffer = nullptr;
    size_t size = 0;
    for (unsigned i = 0; i < count; ++i) {
        if (options[i] == ERROR_LOG_BUFFER) buffer = static_cast<char *>(values[i]);
        if (options[i] == ERROR_LOG_BUFFER_BYTES) size = reinterpret_cast<uintptr_t>(values[i]);
    }
    if (buffer) std::snprintf(buffer, size, "%s", log.c_str());
    return judged;
}
EXPORT Result cuModuleLoadData(Module **module, const char *ptx) {
    return cuModuleLoadDataEx(module, ptx, 0, nullptr, nullptr);
}
EXPORT Result cuModuleUnload(Module *module) {
    LOCKED;
    Device *device;
    if (const Result failed = current_device(device)) return failed;
    if (const Result failed = drain(*device)) return failed;
    delete module;
    return SUCCESS;
}

EXPORT Result cuModuleGetFunction(Function **function, Module *module, const char *name) {
    LOCKED;
    auto &known = module->functions[name];
    for (Kernel &kernel : kernels()) {
        if (known || std::string(name) != kernel.name) continue;
        if (module->ptx.find(std::string(".entry ") + name + "(") == std::string::npos) continue;
        known.reset(new Function{&kernel});
    }
    *function = known.get();
    return known ? SUCCESS : NOT_FOUND;
}

EXPORT Result cuFuncGetAttribute(int *value, int attribute, const Function *function) {
    switch (attribute) {
        case 0: *value = int(function->kernel->threads); break;         // MAX_THREADS_PER_BLOCK
        case 1: *value = int(function->kernel->shared_bytes); break;    // SHARED_SIZE_BYTES
        case 4: *value = 32; break;                                     // NUM_REGS
        case 5: case 6: *value = capability(); break;                   // PTX_VERSION, BINARY_VERSION
        case 8: *value = int(function->most_dynamic_bytes); break;      // MAX_DYNAMIC_SHARED_SIZE_BYTES
        default: *value = 0;
    }
    return SUCCESS;
}
EXPORT Result cuFuncSetAttribute(Function *function, int attribute, int value) {
    if (attribute != 8) return SUCCESS;
    if (value < 0 || size_t(value) + function->kernel->shared_bytes > SHARED_MOST) return INVALID_VALUE;
    function->most_dynamic_bytes = unsigned(value);
    return SUCCESS;
}
EXPORT Result cuFuncSetCacheConfig(Function *, int) { return SUCCESS; }

EXPORT Result cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const Function *function, int threads,
                                                          size_t dynamic_bytes) {
    *blocks = int(resident(*function, unsigned(threads), dynamic_bytes));
    return SUCCESS;
}
EXPORT Result cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const Function *function, int threads,
                                                                   size_t dynamic_bytes, unsigned) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, dynamic_bytes);
}

EXPORT Result cuLaunchKernel(Function *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                             unsigned block_y, unsigned block_z, unsigned shared_bytes, Stream *stream, void **params,
                             void **) {
    LOCKED;
    return launch(*function, {{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes}, stream, params);
}
EXPORT Result cuLaunchCooperativeKernel(Function *function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                        unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                                        Stream *stream, void **params) {
    LOCKED;
    return launch(*function, {{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes, true}, stream, params);
}

/// CUlaunchConfig of cuda.h.
struct LaunchConfig {
    Dim3 grid, block;
    unsigned shared_bytes;
    Stream *stream;
    struct Attribute {
        int id;
        alignas(8) char value[64];
    } *attributes;
    unsigned attribute_count;
};

EXPORT Result cuLaunchKernelEx(const LaunchConfig *config, Function *function, void **params, void **) {
    LOCKED;
    constexpr int COOPERATIVE = 2;
    bool cooperative = false;
    for (unsigned i = 0; i < config->attribute_count; ++i) {
        cooperative = cooperative || (config->attributes[i].id == COOPERATIVE && config->attributes[i].value[0]);
    }
    return launch(*function, {config->grid, config->block, config->shared_bytes, cooperative}, config->stream, params);
}
