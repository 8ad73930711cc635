// Of the emulated driver: devices and contexts, errors, settings.
#include "simt/driver.h"

#include <cstdio>
#include <cstdlib>

namespace simt {

std::recursive_mutex lock;

namespace {

bool initialised;
std::map<int, Device> devices;
thread_local std::vector<Device *> contexts;
std::map<std::string, std::string> settings;
std::string failure;

struct Error {
    Result code;
    const char *name, *text;
};
constexpr Error ERRORS[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {INVALID_PTX, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"},
    {UNSUPPORTED_PTX_VERSION, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
     "the provided PTX was compiled with an unsupported toolchain."},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {COOPERATIVE_LAUNCH_TOO_LARGE, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE",
     "too many blocks in cooperative launch"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
    {STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {STREAM_CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not initiated in this stream"},
    {STREAM_CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION",
     "dependency created on uncaptured work in another stream"},
};

const Error *find(Result code) {
    for (const Error &error : ERRORS) {
        if (error.code == code) return &error;
    }
    return nullptr;
}

Result find_device(int ordinal, Device *&device) {
    if (!initialised) return NOT_INITIALIZED;
    if (ordinal < 0 || ordinal >= device_count()) return INVALID_DEVICE;
    device = &devices[ordinal];
    device->ordinal = ordinal;
    device->null_stream.device = device;
    return SUCCESS;
}

bool is_context(const Device *context) {
    for (const auto &[_, device] : devices) {
        if (context == &device) return true;
    }
    return false;
}

}  // namespace

const char *setting(const char *name) {
    const std::string variable = std::string("SIMT_") + name;
    const auto found = settings.find(variable);
    return found == settings.end() ? std::getenv(variable.c_str()) : found->second.c_str();
}

long long number(const char *name, long long otherwise) {
    const char *text = setting(name);
    return text && *text ? std::atoll(text) : otherwise;
}

int device_count() { return int(number("DEVICES", 1)); }

int capability() {
    int major = 9, minor = 0;
    if (const char *text = setting("CAPABILITY")) std::sscanf(text, "%d.%d", &major, &minor);
    return 10 * major + minor;
}

int multiprocessors() { return int(number("SMS", 4)); }

Result state_of(Device &device) {
    const char *after = setting("LOST_AFTER");
    if (!after || !*after || device.lost_for != after) {
        // Another value, or none: a new chance.
        device.lost = SUCCESS;
        device.launches = 0;
        device.lost_for = after ? after : "";
    }
    return device.lost;
}

Result current_device(Device *&device) {
    if (!initialised) return NOT_INITIALIZED;
    if (contexts.empty() || !contexts.back()) return INVALID_CONTEXT;
    device = contexts.back();
    return state_of(*device);
}

void note_failure(const std::string &what) {
    failure = what;
    if (!what.empty() && number("VERBOSE", 0)) std::fprintf(stderr, "simt: %s\n", what.c_str());
}
const std::string &last_failure() { return failure; }

}  // namespace simt

using namespace simt;

/// Of the emulator, not of CUDA: a setting for this process that goes before the environment's; null takes it back.
EXPORT void simt_set(const char *variable, const char *value) {
    LOCKED;
    if (value) {
        settings[variable] = value;
    } else {
        settings.erase(variable);
    }
}
/// Of the emulator, not of CUDA: the order of threads in the launches that follow.
EXPORT void simt_set_order(int wanted) {
    constexpr const char *NAMES[] = {"forward", "reverse", "shuffled"};
    simt_set("SIMT_ORDER", NAMES[wanted]);
}
/// Of the emulator, not of CUDA: what the last LAUNCH_FAILED was about.
EXPORT const char *simt_failure() { return last_failure().c_str(); }
/// Of the emulator, not of CUDA: the size of a kernel's struct, 0 for an unknown one.
EXPORT size_t simt_params_size(const char *name) {
    for (const Kernel &kernel : kernels()) {
        if (std::string(name) == kernel.name) return kernel.params_size;
    }
    return 0;
}
/// Of the emulator, not of CUDA: bytes of device memory in use.
EXPORT size_t simt_memory_in_use() {
    LOCKED;
    size_t total = 0;
    for (const auto &[_, device] : devices) total += device.in_use;
    return total;
}

EXPORT Result cuInit(unsigned) {
    LOCKED;
    if (device_count() == 0) return NO_DEVICE;
    initialised = true;
    return SUCCESS;
}

EXPORT Result cuDriverGetVersion(int *version) {
    LOCKED;
    *version = int(number("DRIVER_VERSION", 12080));
    return SUCCESS;
}

EXPORT Result cuGetErrorName(Result code, const char **name) {
    const Error *error = find(code);
    *name = error ? error->name : nullptr;
    return error ? SUCCESS : INVALID_VALUE;
}

EXPORT Result cuGetErrorString(Result code, const char **text) {
    LOCKED;
    const Error *error = find(code);
    *text = error ? error->text : nullptr;
    if (code == LAUNCH_FAILED && !failure.empty()) {
        // More than a device would say. Kept, because the caller may keep the pointer.
        static std::set<std::string> said;
        *text = said.insert(std::string(error->text) + ": " + failure).first->c_str();
    }
    return error ? SUCCESS : INVALID_VALUE;
}

EXPORT Result cuDeviceGetCount(int *count) {
    LOCKED;
    if (!initialised) return NOT_INITIALIZED;
    *count = device_count();
    return SUCCESS;
}

EXPORT Result cuDeviceGet(int *device, int ordinal) {
    LOCKED;
    Device *found;
    if (const Result failed = find_device(ordinal, found)) return failed;
    *device = ordinal;
    return SUCCESS;
}

EXPORT Result cuDeviceGetName(char *name, int size, int device) {
    std::snprintf(name, size_t(size), "emulated GPU %d", device);
    return SUCCESS;
}

EXPORT Result cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
    std::memcpy(uuid, "spikelet simt GP", 16);
    uuid[15] = static_cast<unsigned char>(device);
    return SUCCESS;
}
EXPORT Result cuDeviceGetUuid(unsigned char *uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }

EXPORT Result cuDeviceTotalMem_v2(size_t *bytes, int) {
    LOCKED;
    *bytes = size_t(number("MEMORY", 16ll << 30));
    return SUCCESS;
}

EXPORT Result cuDeviceGetAttribute(int *value, int attribute, int ordinal) {
    LOCKED;
    Device *device;
    if (const Result failed = find_device(ordinal, device)) return failed;
    switch (attribute) {
        case 1: *value = 1024; break;                   // MAX_THREADS_PER_BLOCK
        case 2: case 3: *value = 1024; break;           // MAX_BLOCK_DIM_X, _Y
        case 4: *value = 64; break;                     // MAX_BLOCK_DIM_Z
        case 5: *value = 0x7fffffff; break;             // MAX_GRID_DIM_X
        case 6: case 7: *value = 0xffff; break;         // MAX_GRID_DIM_Y, _Z
        case 8: *value = SHARED_DEFAULT; break;         // MAX_SHARED_MEMORY_PER_BLOCK
        case 10: *value = WARP; break;                  // WARP_SIZE
        case 12: *value = 65536; break;                 // MAX_REGISTERS_PER_BLOCK
        case 13: *value = 1'000'000; break;             // CLOCK_RATE
        case 16: *value = multiprocessors(); break;     // MULTIPROCESSOR_COUNT
        case 18: *value = 0; break;                     // INTEGRATED
        case 19: *value = 1; break;                     // CAN_MAP_HOST_MEMORY
        case 20: *value = 0; break;                     // COMPUTE_MODE
        case 31: *value = 1; break;                     // CONCURRENT_KERNELS
        case 38: *value = 32 << 20; break;              // L2_CACHE_SIZE
        case 39: *value = 2048; break;                  // MAX_THREADS_PER_MULTIPROCESSOR
        case 40: *value = 2; break;                     // ASYNC_ENGINE_COUNT
        case 41: *value = 1; break;                     // UNIFIED_ADDRESSING
        case 75: *value = capability() / 10; break;     // COMPUTE_CAPABILITY_MAJOR
        case 76: *value = capability() % 10; break;     // COMPUTE_CAPABILITY_MINOR
        case 81: *value = 228 << 10; break;             // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
        case 82: *value = 65536; break;                 // MAX_REGISTERS_PER_MULTIPROCESSOR
        case 95: *value = 1; break;                     // COOPERATIVE_LAUNCH
        case 97: *value = int(number("SHARED", SHARED_MOST)); break;  // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        case 106: *value = 32; break;                   // MAX_BLOCKS_PER_MULTIPROCESSOR
        case 111: *value = 1024; break;                 // RESERVED_SHARED_MEMORY_PER_BLOCK
        case 115: *value = int(number("POOLS", 1)); break;  // MEMORY_POOLS_SUPPORTED
        default: *value = 0;
    }
    return SUCCESS;
}

EXPORT Result cuDevicePrimaryCtxRetain(Device **context, int ordinal) {
    LOCKED;
    Device *device;
    if (const Result failed = find_device(ordinal, device)) return failed;
    *context = device;
    return state_of(*device);
}
EXPORT Result cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }

EXPORT Result cuCtxPushCurrent_v2(Device *context) {
    LOCKED;
    if (!is_context(context)) return INVALID_CONTEXT;
    contexts.push_back(context);
    return SUCCESS;
}
EXPORT Result cuCtxPopCurrent_v2(Device **context) {
    if (contexts.empty()) return INVALID_CONTEXT;
    if (context) *context = contexts.back();
    contexts.pop_back();
    return SUCCESS;
}
EXPORT Result cuCtxSetCurrent(Device *context) {
    LOCKED;
    if (context && !is_context(context)) return INVALID_CONTEXT;
    if (!contexts.empty()) contexts.pop_back();
    if (context) contexts.push_back(context);
    return SUCCESS;
}
EXPORT Result cuCtxGetCurrent(Device **context) {
    if (!initialised) return NOT_INITIALIZED;
    *context = contexts.empty() ? nullptr : contexts.back();
    return SUCCESS;
}
EXPORT Result cuCtxGetDevice(int *device) {
    if (contexts.empty()) return INVALID_CONTEXT;
    *device = contexts.back()->ordinal;
    return SUCCESS;
}
EXPORT Result cuCtxSynchronize() {
    LOCKED;
    Device *device;
    if (const Result failed = current_device(device)) return failed;
    if (const Result refused = refuse_in_capture(*device)) return refused;
    return drain(*device);
}
EXPORT Result cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return SUCCESS;
}
EXPORT Result cuCtxGetLimit(size_t *value, int) {
    *value = 1024;
    return SUCCESS;
}
EXPORT Result cuCtxSetLimit(int, size_t) { return SUCCESS; }
EXPORT Result cuCtxSetFlags(unsigned) { return SUCCESS; }
EXPORT Result cuCtxGetCacheConfig(int *config) {
    *config = 0;
    return SUCCESS;
}
EXPORT Result cuCtxSetCacheConfig(int) { return SUCCESS; }
EXPORT Result cuProfilerStart() { return SUCCESS; }
EXPORT Result cuProfilerStop() { return SUCCESS; }
