// Captures of streams, and the graphs that come of them.
#include <stdlib.h>
#include <string.h>

#include "cudart.h"

// Both a cudaGraph_t and, once it is instantiated, a cudaGraphExec_t. Each holds a reference, and so does a launch.
struct graph {
    unsigned number; // in the order in which captures ended
    size_t references;
    size_t launches; // kernels, products and cuDNN's operations
    struct operation *operations;
    size_t count, room;
};

static struct capture *captures;

const void *this_thread(void)
{
    static _Thread_local char token;
    return &token;
}

struct capture *find_capture(unsigned long id)
{
    for (struct capture *capture = captures; capture != NULL; capture = capture->next) {
        if (capture->id == id) {
            return capture;
        }
    }
    return NULL;
}

cudaError_t broken(struct capture *capture, const char *function, cudaError_t error)
{
    capture->broken = true;
    note("REFUSED %s", function);
    return error;
}

static bool forbids(const struct capture *capture, enum harm harm)
{
    bool unsafe = capture->mode == cudaStreamCaptureModeGlobal ||
                  (capture->mode == cudaStreamCaptureModeThreadLocal && capture->thread == this_thread());
    switch (harm) {
    case AIMED:
        return false;
    case UNSAFE:
        return unsafe;
    case SYNCHRONOUS:
        return unsafe || capture->origin->blocking;
    case DEVICE:
        break;
    }
    return true;
}

cudaError_t forbid(const char *function, enum harm harm, struct capture *own)
{
    cudaError_t error = cudaSuccess;
    for (struct capture *capture = captures; capture != NULL; capture = capture->next) {
        if (capture == own || forbids(capture, harm)) {
            capture->broken = true;
            error = cudaErrorStreamCaptureUnsupported;
        }
    }
    if (error != cudaSuccess) {
        note("REFUSED %s", function);
    }
    return error;
}

cudaError_t admit(cudaStream_t handle, const char *function, struct graph **graph)
{
    *graph = NULL;
    struct stream *stream = find_stream(handle);
    if (stream == NULL) {
        return cudaErrorInvalidResourceHandle;
    }
    if (stream->capture != NULL) {
        *graph = stream->capture->graph;
        return stream->capture->broken ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
    }
    if (is_default(stream)) {
        // The default stream waits for the blocking ones, and captured work cannot be waited for.
        for (stream = next_stream(NULL); stream != NULL; stream = next_stream(stream)) {
            if (stream->capture != NULL && stream->blocking) {
                return broken(stream->capture, function, cudaErrorStreamCaptureImplicit);
            }
        }
    }
    return cudaSuccess;
}

void graph_count(struct graph *graph)
{
    graph->launches++;
}

void graph_add(struct graph *graph, const struct operation *operation)
{
    graph->operations = grown(graph->operations, graph->count, &graph->room, sizeof *graph->operations);
    graph->operations[graph->count++] = *operation;
}

static void release(struct graph *graph)
{
    if (--graph->references == 0) {
        free(graph->operations);
        free(graph);
    }
}

static cudaError_t begin(struct stream *stream, enum cudaStreamCaptureMode mode)
{
    static unsigned long last;
    if (stream == NULL) {
        return cudaErrorInvalidResourceHandle;
    }
    if (is_default(stream)) {
        return cudaErrorStreamCaptureUnsupported;
    }
    if (stream->capture != NULL) {
        return cudaErrorIllegalState;
    }
    struct capture *capture = calloc(1, sizeof *capture);
    struct graph *graph = calloc(1, sizeof *graph);
    if (capture == NULL || graph == NULL) {
        free(capture);
        free(graph);
        return cudaErrorMemoryAllocation;
    }
    graph->references = 1;
    *capture = (struct capture){captures, ++last, stream, mode, this_thread(), false, graph};
    captures = capture;
    stream->capture = capture;
    note("CAPTURE begin " STREAM_FORMAT, STREAM_WORD(stream->handle));
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, enum cudaStreamCaptureMode mode)
{
    enter();
    return leave(begin(find_stream(handle), mode));
}

// Takes a capture from its streams and from the list.
static void detach(struct capture *capture)
{
    for (struct stream *stream = next_stream(NULL); stream != NULL; stream = next_stream(stream)) {
        if (stream->capture == capture) {
            stream->capture = NULL;
        }
    }
    struct capture **place = &captures;
    while (*place != capture) {
        place = &(*place)->next;
    }
    *place = capture->next;
}

static cudaError_t end(struct stream *stream, cudaGraph_t *graph)
{
    static unsigned last;
    *graph = NULL;
    struct capture *capture = stream == NULL ? NULL : stream->capture;
    if (capture == NULL) {
        return stream == NULL ? cudaErrorInvalidResourceHandle : cudaErrorIllegalState;
    }
    if (capture->origin != stream) {
        return broken(capture, "cudaStreamEndCapture", cudaErrorStreamCaptureUnmatched);
    }
    if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != this_thread()) {
        return cudaErrorStreamCaptureWrongThread;
    }
    note("CAPTURE end %s %zu", capture->broken ? "broken" : "ok", capture->graph->launches);
    detach(capture);
    cudaError_t error = cudaSuccess;
    if (capture->broken) {
        release(capture->graph);
        error = cudaErrorStreamCaptureInvalidated;
    } else {
        capture->graph->number = ++last;
        *graph = (cudaGraph_t)capture->graph;
    }
    free(capture);
    return error;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *graph)
{
    enter();
    return leave(end(find_stream(handle), graph));
}

static cudaError_t capture_status(cudaStream_t handle, enum cudaStreamCaptureStatus *status)
{
    struct stream *stream = find_stream(handle);
    if (stream == NULL) {
        return cudaErrorInvalidResourceHandle;
    }
    if (stream->capture == NULL) {
        *status = cudaStreamCaptureStatusNone;
    } else if (stream->capture->broken) {
        *status = cudaStreamCaptureStatusInvalidated;
    } else {
        *status = cudaStreamCaptureStatusActive;
    }
    if (is_default(stream)) {
        for (stream = next_stream(NULL); stream != NULL; stream = next_stream(stream)) {
            if (stream->capture != NULL && stream->blocking) {
                return cudaErrorStreamCaptureImplicit; // a query alone breaks nothing
            }
        }
    }
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, enum cudaStreamCaptureStatus *status)
{
    enter();
    return leave(capture_status(handle, status));
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long flags)
{
    (void)flags;
    if (graph == NULL) {
        return remember(cudaErrorInvalidValue);
    }
    enter();
    ((struct graph *)graph)->references++;
    *executable = (cudaGraphExec_t)graph;
    return leave(cudaSuccess);
}

static cudaError_t destroy(void *graph)
{
    if (graph == NULL) {
        return remember(cudaErrorInvalidValue);
    }
    enter();
    release(graph);
    return leave(cudaSuccess);
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    return destroy(graph);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable)
{
    return destroy(executable);
}

// A launch within a capture becomes part of what is captured.
static void nest(struct graph *outer, const struct graph *inner)
{
    outer->launches += inner->launches;
    for (size_t i = 0; i < inner->count; i++) {
        graph_add(outer, &inner->operations[i]);
    }
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t handle)
{
    struct graph *graph = (struct graph *)executable;
    if (graph == NULL) {
        return remember(cudaErrorInvalidValue);
    }
    struct graph *outer;
    enter();
    cudaError_t error = admit(handle, "cudaGraphLaunch", &outer);
    if (error != cudaSuccess) {
        return leave(error);
    }
    if (outer != NULL) {
        nest(outer, graph);
        return leave(cudaSuccess);
    }
    note("REPLAY %u %zu", graph->number, graph->launches);
    graph->references++;
    leave(cudaSuccess);
    for (size_t i = 0; i < graph->count; i++) {
        perform(&graph->operations[i]);
    }
    enter();
    release(graph);
    return leave(cudaSuccess);
}

void perform(const struct operation *operation)
{
    switch (operation->kind) {
    case COPY:
        for (size_t row = 0; row < operation->copy.height; row++) {
            memmove(operation->copy.to + row * operation->copy.to_pitch,
                    operation->copy.from + row * operation->copy.from_pitch, operation->copy.width);
        }
        break;
    case FILL:
        memset(operation->fill.to, operation->fill.value, operation->fill.size);
        break;
    case CALL:
        operation->call.function(operation->call.data);
        break;
    }
}
