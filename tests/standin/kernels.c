// Kernels: a program registers them when it is loaded, and launches them by the address of a function of the host's.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cudart.h"
#include "standin.h"

struct kernel {
    const void *function; // null: a free place
    const char *name;     // mangled, as the compiler wrote it
};

// Open addressing, at most half full. ONNX Runtime's provider registers tens of thousands, and each launch looks.
static struct kernel *kernels;
static size_t count, places;

static struct kernel *place_of(const void *function)
{
    size_t place = (size_t)(((uintptr_t)function * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & (places - 1);
    while (kernels[place].function != NULL && kernels[place].function != function) {
        place = (place + 1) & (places - 1);
    }
    return &kernels[place];
}

static void resize(void)
{
    struct kernel *old = kernels;
    size_t old_places = places;
    places = old_places == 0 ? 1 << 16 : 2 * old_places;
    kernels = calloc(places, sizeof *kernels);
    if (kernels == NULL) {
        abort();
    }
    for (size_t i = 0; i < old_places; i++) {
        if (old[i].function != NULL) {
            *place_of(old[i].function) = old[i];
        }
    }
    free(old);
}

// A library that is unloaded and loaded again may register other kernels at the same addresses: the last one counts.
static void add(const void *function, const char *name)
{
    if (2 * (count + 1) > places) {
        resize();
    }
    struct kernel *place = place_of(function);
    count += place->function == NULL;
    *place = (struct kernel){function, name};
}

static const char *name_of(const void *function)
{
    return places == 0 ? NULL : place_of(function)->name;
}

// What a program's start-up code calls. These functions are in no header.

void **__cudaRegisterFatBinary(void *binary)
{
    (void)binary;
    static void *handle;
    return &handle;
}

void __cudaRegisterFatBinaryEnd(void **handle)
{
    (void)handle;
}

void __cudaUnregisterFatBinary(void **handle)
{
    (void)handle;
}

void __cudaRegisterVar(void **handle, char *host, char *device, const char *name, int external, size_t size,
                       int constant, int global)
{
    (void)handle, (void)host, (void)device, (void)name, (void)external, (void)size, (void)constant, (void)global;
}

void __cudaRegisterFunction(void **handle, const char *function, char *device_function, const char *name,
                            int thread_limit, uint3 *thread, uint3 *block, dim3 *block_size, dim3 *grid_size, int *warp)
{
    (void)handle, (void)device_function, (void)thread_limit, (void)thread, (void)block, (void)block_size;
    (void)grid_size, (void)warp;
    enter();
    add(function, name);
    leave(cudaSuccess);
}

// Between `<<<...>>>` and the function that it calls, the launch's numbers wait on a stack of the thread's.
struct call {
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
};

static _Thread_local struct call calls[16];
static _Thread_local size_t depth;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream)
{
    if (depth == sizeof calls / sizeof *calls) {
        return 1;
    }
    calls[depth++] = (struct call){grid, block, shared, stream};
    return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream)
{
    if (depth == 0) {
        return remember(cudaErrorMissingConfiguration);
    }
    const struct call *call = &calls[--depth];
    *grid = call->grid;
    *block = call->block;
    *shared = call->shared;
    *(cudaStream_t *)stream = call->stream;
    return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function)
{
    *kernel = (cudaKernel_t)function;
    return cudaSuccess;
}

static bool is_empty(dim3 size)
{
    return size.x == 0 || size.y == 0 || size.z == 0;
}

static bool is_too_large(dim3 grid, dim3 block)
{
    return grid.x > INT32_MAX || grid.y > UINT16_MAX || grid.z > UINT16_MAX || block.z > 64 ||
           (uint64_t)block.x * block.y * block.z > 1024;
}

static cudaError_t launch(const char *caller, const void *function, dim3 grid, dim3 block, cudaStream_t stream)
{
    struct graph *graph;
    const char *name = name_of(function);
    if (name == NULL) {
        return cudaErrorInvalidDeviceFunction;
    }
    if (is_empty(grid) || is_empty(block)) {
        note("EMPTY %s", name);
        return cudaErrorInvalidConfiguration;
    }
    if (is_too_large(grid, block)) {
        return cudaErrorInvalidConfiguration;
    }
    cudaError_t error = admit(stream, caller, &graph);
    if (error == cudaSuccess) {
        note("KERNEL " STREAM_FORMAT " %s", STREAM_WORD(stream), name);
        if (graph != NULL) {
            graph_count(graph);
        }
    }
    return error;
}

cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared,
                             cudaStream_t stream)
{
    (void)arguments, (void)shared;
    enter();
    return leave(launch("cudaLaunchKernel", function, grid, block, stream));
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared,
                               cudaStream_t stream)
{
    return cudaLaunchKernel((const void *)kernel, grid, block, arguments, shared, stream);
}

cudaError_t cudaLaunchCooperativeKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared,
                                        cudaStream_t stream)
{
    (void)arguments, (void)shared;
    enter();
    return leave(launch("cudaLaunchCooperativeKernel", function, grid, block, stream));
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function, void **arguments)
{
    (void)arguments;
    enter();
    return leave(launch("cudaLaunchKernelExC", function, config->gridDim, config->blockDim, config->stream));
}

// Called at once and outside the lock: it may take a lock that another thread holds while it calls CUDA.
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data)
{
    struct operation operation = {CALL, {.call = {function, data}}};
    struct graph *graph;
    enter();
    cudaError_t error = admit(stream, "cudaLaunchHostFunc", &graph);
    if (error == cudaSuccess && graph != NULL) {
        graph_add(graph, &operation);
    }
    leave(error);
    if (error == cudaSuccess && graph == NULL) {
        perform(&operation);
    }
    return error;
}

int standin_work(enum standin_kind kind, const char *function, void *stream)
{
    struct graph *graph;
    enter();
    cudaError_t error = admit(stream, function, &graph);
    if (error != cudaSuccess) {
        return leave(error);
    }
    switch (kind) {
    case STANDIN_KERNEL:
        note("KERNEL " STREAM_FORMAT " %s", STREAM_WORD(stream), function);
        break;
    case STANDIN_PRODUCT:
        note("GEMM %s", function);
        break;
    case STANDIN_CUDNN:
        note("CUDNN %s", function);
        break;
    }
    if (graph != NULL) {
        graph_count(graph);
    }
    return leave(cudaSuccess);
}

// Kernels that a program loads by itself, each from a library of its own.

cudaError_t cudaLibraryLoadData(cudaLibrary_t *library, const void *code, enum cudaJitOption *jit_options,
                                void **jit_values, unsigned jit_count, enum cudaLibraryOption *options, void **values,
                                unsigned option_count)
{
    (void)code, (void)jit_options, (void)jit_values, (void)jit_count, (void)options, (void)values, (void)option_count;
    static char token;
    *library = (cudaLibrary_t)&token;
    return cudaSuccess;
}

cudaError_t cudaLibraryUnload(cudaLibrary_t library)
{
    (void)library;
    return cudaSuccess;
}

// The name's copy serves as the handle, and stays for as long as the process does.
cudaError_t cudaLibraryGetKernel(cudaKernel_t *kernel, cudaLibrary_t library, const char *name)
{
    (void)library;
    char *copy = strdup(name);
    if (copy == NULL) {
        return remember(cudaErrorMemoryAllocation);
    }
    enter();
    add(copy, copy);
    *kernel = (cudaKernel_t)copy;
    return leave(cudaSuccess);
}

cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t kernel, enum cudaFuncAttribute attribute, int value,
                                            int device)
{
    (void)kernel, (void)attribute, (void)value, (void)device;
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *function, enum cudaFuncAttribute attribute, int value)
{
    (void)function, (void)attribute, (void)value;
    return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *function)
{
    enter();
    if (name_of(function) == NULL) {
        return leave(cudaErrorInvalidDeviceFunction);
    }
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 32;
    attributes->ptxVersion = settings.chip;
    attributes->binaryVersion = settings.chip;
    return leave(cudaSuccess);
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function, int block_size,
                                                                   size_t shared, unsigned flags)
{
    (void)function, (void)block_size, (void)shared, (void)flags;
    *blocks = 2;
    return cudaSuccess;
}
