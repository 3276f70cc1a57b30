// Streams and events. All work is done in the thread that asks for it, so that a stream is always idle and an event has
// always occurred: what is left of them is their part in captures.
#include <stdint.h>
#include <stdlib.h>

#include "cudart.h"

struct CUevent_st {
    bool recorded;
    unsigned long capture; // in which it was last recorded, 0 outside of any
};

static struct stream default_stream = {.blocking = true};
static struct stream *streams;

bool is_default(const struct stream *stream)
{
    return stream == &default_stream;
}

struct stream *next_stream(const struct stream *stream)
{
    return stream == NULL ? streams : stream->next;
}

struct stream *find_stream(cudaStream_t handle)
{
    if (handle == NULL || handle == cudaStreamLegacy || handle == cudaStreamPerThread) {
        return &default_stream;
    }
    for (struct stream *stream = streams; stream != NULL; stream = stream->next) {
        if (stream->handle == handle) {
            return stream;
        }
    }
    return NULL;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *handle, unsigned flags)
{
    // Numbers rather than addresses, so that the log of one program is the same each time.
    static uintptr_t last = 0x1000;
    struct stream *stream = calloc(1, sizeof *stream);
    if (stream == NULL) {
        return remember(cudaErrorMemoryAllocation);
    }
    enter();
    last += 0x10;
    stream->handle = (cudaStream_t)last;
    stream->blocking = (flags & cudaStreamNonBlocking) == 0;
    stream->next = streams;
    streams = stream;
    *handle = stream->handle;
    note("STREAM " STREAM_FORMAT, STREAM_WORD(stream->handle));
    return leave(cudaSuccess);
}

cudaError_t cudaStreamCreate(cudaStream_t *handle)
{
    return cudaStreamCreateWithFlags(handle, cudaStreamDefault);
}

static cudaError_t destroy(cudaStream_t handle)
{
    for (struct stream **place = &streams; *place != NULL; place = &(*place)->next) {
        struct stream *stream = *place;
        if (stream->handle == handle) {
            cudaError_t error = forbid("cudaStreamDestroy", AIMED, stream->capture);
            if (error == cudaSuccess) {
                *place = stream->next;
                free(stream);
            }
            return error;
        }
    }
    return cudaErrorInvalidResourceHandle;
}

cudaError_t cudaStreamDestroy(cudaStream_t handle)
{
    enter();
    return leave(destroy(handle));
}

// Whether the host may wait for a stream or query it.
static cudaError_t may_wait(cudaStream_t handle, const char *function)
{
    struct stream *stream = find_stream(handle);
    if (stream == NULL) {
        return cudaErrorInvalidResourceHandle;
    }
    return forbid(function, is_default(stream) ? SYNCHRONOUS : UNSAFE, stream->capture);
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle)
{
    enter();
    cudaError_t error = may_wait(handle, "cudaStreamSynchronize");
    if (error == cudaSuccess) {
        note("WAIT stream");
    }
    flush_log();
    return leave(error);
}

cudaError_t cudaStreamQuery(cudaStream_t handle)
{
    enter();
    return leave(may_wait(handle, "cudaStreamQuery"));
}

cudaError_t cudaDeviceSynchronize(void)
{
    enter();
    cudaError_t error = forbid("cudaDeviceSynchronize", DEVICE, NULL);
    if (error == cudaSuccess) {
        note("WAIT device");
    }
    flush_log();
    return leave(error);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags)
{
    (void)flags;
    *event = calloc(1, sizeof **event);
    return remember(*event == NULL ? cudaErrorMemoryAllocation : cudaSuccess);
}

cudaError_t cudaEventCreate(cudaEvent_t *event)
{
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    if (event == NULL) {
        return remember(cudaErrorInvalidResourceHandle);
    }
    free(event);
    return cudaSuccess;
}

static cudaError_t record(cudaEvent_t event, cudaStream_t handle, const char *function)
{
    struct graph *graph;
    cudaError_t error = event == NULL ? cudaErrorInvalidResourceHandle : admit(handle, function, &graph);
    if (error == cudaSuccess) {
        struct capture *capture = find_stream(handle)->capture;
        event->recorded = true;
        event->capture = capture == NULL ? 0 : capture->id;
    }
    return error;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle)
{
    enter();
    return leave(record(event, handle, "cudaEventRecord"));
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t handle, unsigned flags)
{
    (void)flags;
    enter();
    return leave(record(event, handle, "cudaEventRecordWithFlags"));
}

// A stream that waits for a captured event joins the capture; a captured stream must not wait for anything outside.
static cudaError_t wait_for(cudaStream_t handle, cudaEvent_t event)
{
    struct graph *graph;
    cudaError_t error = event == NULL ? cudaErrorInvalidResourceHandle : admit(handle, "cudaStreamWaitEvent", &graph);
    if (error != cudaSuccess || !event->recorded) {
        return error;
    }
    struct stream *stream = find_stream(handle);
    if (event->capture == 0) {
        return stream->capture == NULL
                   ? cudaSuccess
                   : broken(stream->capture, "cudaStreamWaitEvent", cudaErrorStreamCaptureIsolation);
    }
    struct capture *capture = find_capture(event->capture);
    if (capture == NULL) {
        return cudaErrorCapturedEvent;
    }
    if (is_default(stream)) {
        return broken(capture, "cudaStreamWaitEvent", cudaErrorStreamCaptureImplicit);
    }
    if (stream->capture != NULL && stream->capture != capture) {
        stream->capture->broken = true;
        return broken(capture, "cudaStreamWaitEvent", cudaErrorStreamCaptureMerge);
    }
    stream->capture = capture;
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned flags)
{
    (void)flags;
    enter();
    return leave(wait_for(handle, event));
}

// Whether the host may wait for an event or query it.
static cudaError_t may_ask(cudaEvent_t event, const char *function)
{
    if (event == NULL) {
        return cudaErrorInvalidResourceHandle;
    }
    cudaError_t error = forbid(function, UNSAFE, find_capture(event->capture));
    if (error == cudaSuccess && event->capture != 0) {
        error = cudaErrorCapturedEvent;
    }
    return error;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    enter();
    cudaError_t error = may_ask(event, "cudaEventSynchronize");
    if (error == cudaSuccess) {
        note("WAIT event");
    }
    flush_log();
    return leave(error);
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    enter();
    return leave(may_ask(event, "cudaEventQuery"));
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end)
{
    if (start == NULL || end == NULL) {
        return remember(cudaErrorInvalidResourceHandle);
    }
    *milliseconds = 1; // nothing takes any time, but someone may divide by it
    return cudaSuccess;
}
