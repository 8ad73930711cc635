// What the parts of the emulated driver share: its objects, its errors, its settings.
//
// Compiled together with .cu files into a shared library that is loaded in place of libcuda.so, so that tests on a
// machine without a GPU go through every line between a tensor and the kernel's arithmetic. Functions have the names and
// signatures of libcuda; device memory is host memory.
#pragma once

#include "simt/simt.h"

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace simt {

enum Result : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    INVALID_PTX = 218,
    UNSUPPORTED_PTX_VERSION = 222,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_FAILED = 719,
    COOPERATIVE_LAUNCH_TOO_LARGE = 720,
    NOT_SUPPORTED = 801,
    STREAM_CAPTURE_UNSUPPORTED = 900,
    STREAM_CAPTURE_INVALIDATED = 901,
    STREAM_CAPTURE_UNMATCHED = 903,
    STREAM_CAPTURE_ISOLATION = 905,
};

/// A setting, SIMT_<name>: from simt_set, else from the environment; null when neither says anything.
const char *setting(const char *name);
long long number(const char *name, long long otherwise);

using Work = std::function<Result()>;

struct Graph {
    std::vector<Work> nodes;
};

struct Device;

struct Stream {
    Device *device = nullptr;
    /// What is recorded instead of done.
    std::unique_ptr<Graph> capture;
    /// A call that must not be recorded came in between.
    bool invalidated = false;
};

/// A device, and its primary context.
struct Device {
    int ordinal = 0;
    size_t in_use = 0;
    /// Device memory by address, with its size.
    std::map<uintptr_t, size_t> memory;
    Stream null_stream;
    std::set<Stream *> streams;
    /// What was asked for and is done when somebody waits, under SIMT_STREAMS=lazy.
    std::vector<Work> queue;
    /// What went wrong in the queue and was not told yet.
    Result unreported = SUCCESS;
    long long launches = 0;
    /// Why every call fails, and for which value of SIMT_LOST_AFTER.
    Result lost = SUCCESS;
    std::string lost_for;
};

/// One call at a time. Recursive, because a host function may call the driver.
extern std::recursive_mutex lock;
#define LOCKED const std::lock_guard<std::recursive_mutex> guard(simt::lock)

/// Of this thread's current context. Most calls begin with it.
Result current_device(Device *&device);
/// What SIMT_LOST_AFTER says of a device.
Result state_of(Device &device);
int device_count();
/// 80 for 8.0.
int capability();
int multiprocessors();

/// A null stream, or one of the device's.
Result find_stream(Stream *handle, Device *&device, Stream *&stream);
/// Does it, or queues it, or records it.
Result submit(Stream &stream, Work work);
/// Does what is queued; says what went wrong on the way.
Result drain(Device &device);
/// Fails while this thread captures, as calls do that cannot be recorded.
Result refuse_in_capture(Device &device);

/// Whether all of [address, address + bytes) is memory of the device.
bool is_device_memory(const Device &device, uintptr_t address, size_t bytes);

/// Notes what a kernel did wrong, for cuGetErrorString.
void note_failure(const std::string &what);
const std::string &last_failure();

}  // namespace simt
