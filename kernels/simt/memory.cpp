// Of the emulated driver: memory and copies.
//
// Every allocation is one of malloc's, filled with NaN. Freed memory is filled with NaN again and kept for a while, so
// that a kernel that still reads there shows; under AddressSanitizer it is reported.
#include "simt/driver.h"

#include <cstdlib>
#include <deque>

namespace simt {
namespace {

/// Pinned memory of the host by address, with its size.
std::map<uintptr_t, size_t> pinned;

bool covers(const std::map<uintptr_t, size_t> &memory, uintptr_t address, size_t bytes) {
    auto after = memory.upper_bound(address);
    if (after == memory.begin()) return false;
    const auto &[start, size] = *--after;
    return address + bytes <= start + size;
}

bool is_pinned(const void *host) { return covers(pinned, reinterpret_cast<uintptr_t>(host), 1); }

/// As aligned as a device's memory.
void *make(size_t bytes) {
    void *made = nullptr;
    return posix_memalign(&made, 256, bytes) ? nullptr : std::memset(made, 0xff, bytes);
}

void discard(void *memory, size_t bytes) {
#if !defined(__SANITIZE_ADDRESS__)
    static std::deque<std::pair<void *, size_t>> kept;
    static size_t kept_bytes;
    constexpr size_t MOST = 64 << 20;
    if (bytes <= MOST) {
        std::memset(memory, 0xff, bytes);
        kept.push_back({memory, bytes});
        kept_bytes += bytes;
        while (kept_bytes > MOST) {
            std::free(kept.front().first);
            kept_bytes -= kept.front().second;
            kept.pop_front();
        }
        return;
    }
#else
    (void)bytes;
#endif
    std::free(memory);
}

Result allocate(Device &device, uintptr_t *address, size_t bytes) {
    if (!bytes) return INVALID_VALUE;
    if (device.in_use + bytes > size_t(number("MEMORY", 16ll << 30))) return OUT_OF_MEMORY;
    void *made = make(bytes);
    if (!made) return OUT_OF_MEMORY;
    *address = reinterpret_cast<uintptr_t>(made);
    device.memory[*address] = bytes;
    device.in_use += bytes;
    return SUCCESS;
}

Result release(Device &device, uintptr_t address) {
    const auto found = device.memory.find(address);
    if (found == device.memory.end()) return INVALID_VALUE;
    device.in_use -= found->second;
    discard(reinterpret_cast<void *>(address), found->second);
    device.memory.erase(found);
    return SUCCESS;
}

/// A copy in which each side is device memory or not; `wait`: until it is done.
Result copy(uintptr_t to, bool to_device, uintptr_t from, bool from_device, size_t bytes, Stream *handle, bool wait) {
    Device *device;
    Stream *stream;
    if (const Result failed = find_stream(handle, device, stream)) return failed;
    if (!bytes) return SUCCESS;
    if (to_device && !is_device_memory(*device, to, bytes)) return INVALID_VALUE;
    if (from_device && !is_device_memory(*device, from, bytes)) return INVALID_VALUE;
    if (!to || !from) return INVALID_VALUE;
    if (wait) {
        if (const Result refused = refuse_in_capture(*device)) return refused;
        if (const Result failed = drain(*device)) return failed;
    }
    auto *target = reinterpret_cast<char *>(to);
    const auto *source = reinterpret_cast<const char *>(from);
    if (!wait && !stream->capture && !from_device && !is_pinned(source)) {
        // Memory that the device cannot reach goes through a buffer of the driver's before the call returns.
        auto buffer = std::make_shared<std::vector<char>>(source, source + bytes);
        return submit(*stream, [=] { return std::memcpy(target, buffer->data(), bytes), SUCCESS; });
    }
    if (!wait && !stream->capture && !to_device && !is_pinned(target)) {
        if (const Result failed = drain(*device)) return failed;
    }
    return submit(*stream, [=] { return std::memmove(target, source, bytes), SUCCESS; });
}

template <class T>
Result fill(uintptr_t to, T value, size_t count, Stream *handle) {
    Device *device;
    Stream *stream;
    if (const Result failed = find_stream(handle, device, stream)) return failed;
    if (!count) return SUCCESS;
    if (to % sizeof(T) || !is_device_memory(*device, to, count * sizeof(T))) return INVALID_VALUE;
    return submit(*stream, [=] {
        for (size_t i = 0; i < count; ++i) reinterpret_cast<T *>(to)[i] = value;
        return SUCCESS;
    });
}

}  // namespace

bool is_device_memory(const Device &device, uintptr_t address, size_t bytes) {
    return covers(device.memory, address, bytes) || covers(pinned, address, bytes);
}

}  // namespace simt

using namespace simt;

EXPORT Result cuMemAlloc_v2(uintptr_t *address, size_t bytes) {
    LOCKED;
    Device *device;
    if (const Result failed = current_device(device)) return failed;
    if (const Result refused = refuse_in_capture(*device)) return refused;
    return allocate(*device, address, bytes);
}
EXPORT Result cuMemFree_v2(uintptr_t address) {
    LOCKED;
    Device *device;
    if (!address) return SUCCESS;
    if (const Result failed = current_device(device)) return failed;
    if (const Result refused = refuse_in_capture(*device)) return refused;
    if (const Result failed = drain(*device)) return failed;
    return release(*device, address);
}
EXPORT Result cuMemAllocAsync(uintptr_t *address, size_t bytes, Stream *handle) {
    LOCKED;
    Device *device;
    Stream *stream;
    if (const Result failed = find_stream(handle, device, stream)) return failed;
    // A device would make it a node of the graph.
    if (stream->capture) return NOT_SUPPORTED;
    return allocate(*device, address, bytes);
}
EXPORT Result cuMemFreeAsync(uintptr_t address, Stream *handle) {
    LOCKED;
    Device *device;
    Stream *stream;
    if (const Result failed = find_stream(handle, device, stream)) return failed;
    if (stream->capture) return NOT_SUPPORTED;
    if (!device->memory.count(address)) return INVALID_VALUE;
    return submit(*stream, [=] { return release(*device, address); });
}
EXPORT Result cuMemAllocManaged(uintptr_t *address, size_t bytes, unsigned) { return cuMemAlloc_v2(address, bytes); }

EXPORT Result cuMemGetInfo_v2(size_t *free, size_t *total) {
    LOCKED;
    Device *device;
    if (const Result failed = current_device(device)) return failed;
    *total = size_t(number("MEMORY", 16ll << 30));
    *free = *total > device->in_use ? *total - device->in_use : 0;
    return SUCCESS;
}

EXPORT Result cuMemHostAlloc(void **host, size_t bytes, unsigned) {
    LOCKED;
    Device *device;
    if (const Result failed = current_device(device)) return failed;
    if (const Result refused = refuse_in_capture(*device)) return refused;
    if (!bytes) return INVALID_VALUE;
    *host = make(bytes);
    if (!*host) return OUT_OF_MEMORY;
    pinned[reinterpret_cast<uintptr_t>(*host)] = bytes;
    return SUCCESS;
}
EXPORT Result cuMemAllocHost_v2(void **host, size_t bytes) { return cuMemHostAlloc(host, bytes, 0); }
EXPORT Result cuMemFreeHost(void *host) {
    LOCKED;
    Device *device;
    if (const Result failed = current_device(device)) return failed;
    if (const Result refused = refuse_in_capture(*device)) return refused;
    const auto found = pinned.find(reinterpret_cast<uintptr_t>(host));
    if (found == pinned.end()) return INVALID_VALUE;
    if (const Result failed = drain(*device)) return failed;
    discard(host, found->second);
    pinned.erase(found);
    return SUCCESS;
}
EXPORT Result cuMemHostGetDevicePointer_v2(uintptr_t *address, void *host, unsigned) {
    LOCKED;
    if (!is_pinned(host)) return INVALID_VALUE;
    *address = reinterpret_cast<uintptr_t>(host);
    return SUCCESS;
}

EXPORT Result cuMemcpyHtoD_v2(uintptr_t to, const void *from, size_t bytes) {
    LOCKED;
    return copy(to, true, reinterpret_cast<uintptr_t>(from), false, bytes, nullptr, true);
}
EXPORT Result cuMemcpyHtoDAsync_v2(uintptr_t to, const void *from, size_t bytes, Stream *stream) {
    LOCKED;
    return copy(to, true, reinterpret_cast<uintptr_t>(from), false, bytes, stream, false);
}
EXPORT Result cuMemcpyDtoH_v2(void *to, uintptr_t from, size_t bytes) {
    LOCKED;
    const Result done = copy(reinterpret_cast<uintptr_t>(to), false, from, true, bytes, nullptr, true);
    Device *device;
    if (done || current_device(device)) return done;
    return drain(*device);
}
EXPORT Result cuMemcpyDtoHAsync_v2(void *to, uintptr_t from, size_t bytes, Stream *handle) {
    LOCKED;
    const Result done = copy(reinterpret_cast<uintptr_t>(to), false, from, true, bytes, handle, false);
    Device *device;
    Stream *stream;
    if (done || find_stream(handle, device, stream) || stream->capture || is_pinned(to)) return done;
    return drain(*device);
}
EXPORT Result cuMemcpyDtoD_v2(uintptr_t to, uintptr_t from, size_t bytes) {
    LOCKED;
    return copy(to, true, from, true, bytes, nullptr, false);
}
EXPORT Result cuMemcpyDtoDAsync_v2(uintptr_t to, uintptr_t from, size_t bytes, Stream *stream) {
    LOCKED;
    return copy(to, true, from, true, bytes, stream, false);
}

EXPORT Result cuMemsetD8_v2(uintptr_t to, unsigned char value, size_t count) {
    LOCKED;
    return fill(to, value, count, nullptr);
}
EXPORT Result cuMemsetD8Async(uintptr_t to, unsigned char value, size_t count, Stream *stream) {
    LOCKED;
    return fill(to, value, count, stream);
}
EXPORT Result cuMemsetD32_v2(uintptr_t to, unsigned value, size_t count) {
    LOCKED;
    return fill(to, value, count, nullptr);
}
EXPORT Result cuMemsetD32Async(uintptr_t to, unsigned value, size_t count, Stream *stream) {
    LOCKED;
    return fill(to, value, count, stream);
}

// Pools are asked for by name only; all of a device's memory is one.
EXPORT Result cuDeviceGetDefaultMemPool(void **pool, int device) {
    *pool = reinterpret_cast<void *>(intptr_t(device + 1));
    return SUCCESS;
}
EXPORT Result cuDeviceGetMemPool(void **pool, int device) { return cuDeviceGetDefaultMemPool(pool, device); }
EXPORT Result cuDeviceSetMemPool(int, void *) { return SUCCESS; }
EXPORT Result cuMemPoolSetAttribute(void *, int, void *) { return SUCCESS; }
EXPORT Result cuMemPoolGetAttribute(void *, int, void *value) {
    *static_cast<uint64_t *>(value) = 0;
    return SUCCESS;
}
EXPORT Result cuMemPoolTrimTo(void *, size_t) { return SUCCESS; }
