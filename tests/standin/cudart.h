// What the parts of the stand-in of libcudart share.
//
// One lock guards all state. Each function of CUDA's that touches state calls `enter` first and returns by way of
// `leave`; what is declared under "within the lock" is called between the two.
#ifndef STANDIN_CUDART_H
#define STANDIN_CUDART_H

#include <stdbool.h>
#include <stddef.h>

#include <cuda_runtime_api.h>

// The header maps this name to a versioned one for old programs; the library exports the plain name.
#undef cudaGetDeviceProperties

// log.c: settings, the lock, errors, the log

struct settings {
    size_t memory; // bytes of each device
    int chip;      // compute capability, 90 for 9.0
    int devices;
};

extern struct settings settings;

void enter(void);
cudaError_t leave(cudaError_t error);

// Makes `error` this thread's last one, unless it is none, and returns it. `leave` does so as well.
cudaError_t remember(cudaError_t error);

// Within the lock: appends a line to the log.
void note(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Within the lock: hands what was logged to the system, so that a process that is killed later loses none of it.
void flush_log(void);

// Room for one more element in an array that grows by doubling. Out of memory ends the process.
void *grown(void *array, size_t count, size_t *room, size_t element);

// cudart.c: devices

// The device that this thread has chosen.
int current_device(void);

// stream.c and capture.c: where work goes. All within the lock.

// Work that is done at once on a plain stream, and remembered and done at each launch where the stream is captured.
struct operation {
    enum { COPY, FILL, CALL } kind;
    union {
        struct {
            char *to;
            const char *from;
            size_t width, height, to_pitch, from_pitch;
        } copy;
        struct {
            char *to;
            int value;
            size_t size;
        } fill;
        struct {
            cudaHostFn_t function;
            void *data;
        } call;
    };
};

struct stream {
    struct stream *next;
    cudaStream_t handle;
    bool blocking;           // waits for the default stream, and that one for it
    struct capture *capture; // null where the stream is not captured
};

struct graph;

struct capture {
    struct capture *next;
    unsigned long id; // never used again, so that an event can name a capture that is over
    struct stream *origin;
    enum cudaStreamCaptureMode mode;
    const void *thread;
    bool broken;
    struct graph *graph;
};

// The stream with that handle, or null. The default stream has one of its own.
struct stream *find_stream(cudaStream_t handle);

// The next stream after `stream`, the first for null; the default stream is not among them.
struct stream *next_stream(const struct stream *stream);

bool is_default(const struct stream *stream);

// Finds the stream that `function` puts work on, and the graph that the work goes into, null where it is to be done.
cudaError_t admit(cudaStream_t handle, const char *function, struct graph **graph);

void graph_count(struct graph *graph);
void graph_add(struct graph *graph, const struct operation *operation);

// What a call does to captures that run meanwhile.
enum harm {
    AIMED,       // nothing, unless it is aimed at one of them
    UNSAFE,      // something that no capture sees, such as allocating or waiting: disturbs every capture in global mode,
                 // and this thread's own in thread-local mode
    SYNCHRONOUS, // uses the default stream besides, which waits for blocking streams
    DEVICE,      // waits for all streams
};

// Breaks the captures that `function` disturbs, logs it and returns an error, where there are any. `own` is the capture
// that the call is aimed at, or null.
cudaError_t forbid(const char *function, enum harm harm, struct capture *own);

// Breaks a capture on account of `function` and returns `error`.
cudaError_t broken(struct capture *capture, const char *function, cudaError_t error);

struct capture *find_capture(unsigned long id);

// Outside the lock.
void perform(const struct operation *operation);

// The same token for one thread, and no other that runs at the same time.
const void *this_thread(void);

// How a handle is written in the log.
#define STREAM_FORMAT "%#lx"
#define STREAM_WORD(handle) ((unsigned long)(handle))

#endif
