// Of the emulated driver: streams, events, captured graphs.
//
// Streams of a device are one queue: work is done in the order in which it was asked for. At once, unless
// SIMT_STREAMS=lazy: then nothing is done before somebody waits, which shows what the host reads too early, overwrites too
// early or frees too early.
#include "simt/driver.h"

#include <chrono>

namespace simt {

struct Event {
    bool recorded = false, done = false, captured = false;
    std::chrono::steady_clock::time_point when;
};
struct Executable {
    std::shared_ptr<const std::vector<Work>> nodes;
};

namespace {

/// The streams of this thread that are being captured.
thread_local std::set<Stream *> capturing;
std::set<Event *> events;

bool is_lazy() {
    const char *streams = setting("STREAMS");
    return streams && std::string(streams) == "lazy";
}

}  // namespace

Result find_stream(Stream *handle, Device *&device, Stream *&stream) {
    if (const Result failed = current_device(device)) return failed;
    // 0, and the names of the legacy and the per-thread one.
    if (reinterpret_cast<uintptr_t>(handle) <= 2) {
        stream = &device->null_stream;
        return SUCCESS;
    }
    stream = handle;
    return device->streams.count(handle) ? SUCCESS : INVALID_HANDLE;
}

Result submit(Stream &stream, Work work) {
    if (stream.invalidated) return STREAM_CAPTURE_INVALIDATED;
    if (stream.capture) {
        stream.capture->nodes.push_back(std::move(work));
        return SUCCESS;
    }
    if (!is_lazy()) {
        const Result failed = drain(*stream.device);
        return failed ? failed : work();
    }
    stream.device->queue.push_back(std::move(work));
    return SUCCESS;
}

Result drain(Device &device) {
    std::vector<Work> queue;
    queue.swap(device.queue);
    for (const Work &work : queue) {
        const Result failed = work();
        if (!device.unreported) device.unreported = failed;
    }
    const Result failed = device.unreported;
    device.unreported = SUCCESS;
    return failed;
}

Result refuse_in_capture(Device &) {
    for (Stream *stream : capturing) stream->invalidated = true;
    return capturing.empty() ? SUCCESS : STREAM_CAPTURE_UNSUPPORTED;
}

}  // namespace simt

using namespace simt;

EXPORT Result cuStreamCreate(Stream **stream, unsigned) {
    LOCKED;
    Device *device;
    if (const Result failed = current_device(device)) return failed;
    *stream = new Stream;
    (*stream)->device = device;
    device->streams.insert(*stream);
    return SUCCESS;
}
EXPORT Result cuStreamCreateWithPriority(Stream **stream, unsigned flags, int) { return cuStreamCreate(stream, flags); }
EXPORT Result cuStreamDestroy_v2(Stream *handle) {
    LOCKED;
    Device *device;
    Stream *stream;
    if (const Result failed = find_stream(handle, device, stream)) return failed;
    if (stream == &device->null_stream) return INVALID_HANDLE;
    const Result failed = drain(*device);
    capturing.erase(stream);
    device->streams.erase(stream);
    delete stream;
    return failed;
}
EXPORT Result cuStreamSynchronize(Stream *handle) {
    LOCKED;
    Device *device;
    Stream *stream;
    if (const Result failed = find_stream(handle, device, stream)) return failed;
    if (stream->capture) return refuse_in_capture(*device);
    const Result done = drain(*device);
    const Result lost = state_of(*device);
    return done ? done : lost;
}
EXPORT Result cuStreamQuery(Stream *handle) {
    LOCKED;
    Device *device;
    Stream *stream;
    if (const Result failed = find_stream(handle, device, stream)) return failed;
    if (stream->capture) return refuse_in_capture(*device);
    return device->queue.empty() ? SUCCESS : NOT_READY;
}
EXPORT Result cuStreamWaitEvent(Stream *handle, Event *event, unsigned) {
    LOCKED;
    Device *device;
    Stream *stream;
    if (const Result failed = find_stream(handle, device, stream)) return failed;
    if (!events.count(event)) return INVALID_HANDLE;
    if (stream->capture && event->recorded && !event->captured) {
        stream->invalidated = true;
        return STREAM_CAPTURE_ISOLATION;
    }
    return SUCCESS;
}
EXPORT Result cuLaunchHostFunc(Stream *handle, void (*function)(void *), void *data) {
    LOCKED;
    Device *device;
    Stream *stream;
    if (const Result failed = find_stream(handle, device, stream)) return failed;
    return submit(*stream, [=] { return function(data), SUCCESS; });
}

EXPORT Result cuEventCreate(Event **event, unsigned) {
    LOCKED;
    Device *device;
    if (const Result failed = current_device(device)) return failed;
    *event = new Event;
    events.insert(*event);
    return SUCCESS;
}
EXPORT Result cuEventDestroy_v2(Event *event) {
    LOCKED;
    Device *device;
    if (const Result failed = current_device(device)) return failed;
    if (!events.count(event)) return INVALID_HANDLE;
    const Result failed = drain(*device);
    events.erase(event);
    delete event;
    return failed;
}
EXPORT Result cuEventRecord(Event *event, Stream *handle) {
    LOCKED;
    Device *device;
    Stream *stream;
    if (const Result failed = find_stream(handle, device, stream)) return failed;
    if (!events.count(event)) return INVALID_HANDLE;
    event->recorded = true;
    event->captured = stream->capture != nullptr;
    if (event->captured) return SUCCESS;
    event->done = false;
    return submit(*stream, [=] {
        event->when = std::chrono::steady_clock::now();
        event->done = true;
        return SUCCESS;
    });
}
EXPORT Result cuEventSynchronize(Event *event) {
    LOCKED;
    Device *device;
    if (const Result failed = current_device(device)) return failed;
    if (!events.count(event)) return INVALID_HANDLE;
    if (const Result refused = refuse_in_capture(*device)) return refused;
    return drain(*device);
}
EXPORT Result cuEventQuery(Event *event) {
    LOCKED;
    Device *device;
    if (const Result failed = current_device(device)) return failed;
    if (!events.count(event)) return INVALID_HANDLE;
    return !event->recorded || event->done ? SUCCESS : NOT_READY;
}
EXPORT Result cuEventElapsedTime(float *milliseconds, Event *start, Event *end) {
    LOCKED;
    if (!events.count(start) || !events.count(end) || !start->recorded || !end->recorded) return INVALID_HANDLE;
    if (!start->done || !end->done) return NOT_READY;
    *milliseconds = std::chrono::duration<float, std::milli>(end->when - start->when).count();
    return SUCCESS;
}
EXPORT Result cuEventElapsedTime_v2(float *milliseconds, Event *start, Event *end) {
    return cuEventElapsedTime(milliseconds, start, end);
}

EXPORT Result cuStreamBeginCapture_v2(Stream *handle, int) {
    LOCKED;
    Device *device;
    Stream *stream;
    if (const Result failed = find_stream(handle, device, stream)) return failed;
    if (stream == &device->null_stream) return STREAM_CAPTURE_UNSUPPORTED;
    if (stream->capture) return INVALID_VALUE;
    stream->capture.reset(new Graph);
    stream->invalidated = false;
    capturing.insert(stream);
    return SUCCESS;
}
EXPORT Result cuStreamEndCapture(Stream *handle, Graph **graph) {
    LOCKED;
    Device *device;
    Stream *stream;
    *graph = nullptr;
    if (const Result failed = find_stream(handle, device, stream)) return failed;
    if (!stream->capture) return STREAM_CAPTURE_UNMATCHED;
    capturing.erase(stream);
    const std::unique_ptr<Graph> captured = std::move(stream->capture);
    const bool invalidated = stream->invalidated;
    stream->invalidated = false;
    if (invalidated) return STREAM_CAPTURE_INVALIDATED;
    *graph = new Graph(*captured);
    return SUCCESS;
}
EXPORT Result cuStreamIsCapturing(Stream *handle, int *status) {
    LOCKED;
    Device *device;
    Stream *stream;
    if (const Result failed = find_stream(handle, device, stream)) return failed;
    *status = !stream->capture ? 0 : stream->invalidated ? 2 : 1;
    return SUCCESS;
}

EXPORT Result cuGraphInstantiateWithFlags(Executable **executable, const Graph *graph, unsigned long long flags) {
    LOCKED;
    if (flags & ~1ull) return INVALID_VALUE;
    *executable = new Executable{std::make_shared<const std::vector<Work>>(graph->nodes)};
    return SUCCESS;
}
EXPORT Result cuGraphLaunch(const Executable *executable, Stream *handle) {
    LOCKED;
    Device *device;
    Stream *stream;
    if (const Result failed = find_stream(handle, device, stream)) return failed;
    const auto nodes = executable->nodes;
    return submit(*stream, [=] {
        for (const Work &node : *nodes) {
            if (const Result failed = node()) return failed;
        }
        return SUCCESS;
    });
}
EXPORT Result cuGraphUpload(const Executable *, Stream *handle) {
    LOCKED;
    Device *device;
    Stream *stream;
    return find_stream(handle, device, stream);
}
EXPORT Result cuGraphGetNodes(const Graph *graph, void **, size_t *count) {
    LOCKED;
    *count = graph->nodes.size();
    return SUCCESS;
}
EXPORT Result cuGraphExecDestroy(Executable *executable) {
    LOCKED;
    delete executable;
    return SUCCESS;
}
EXPORT Result cuGraphDestroy(Graph *graph) {
    LOCKED;
    delete graph;
    return SUCCESS;
}
