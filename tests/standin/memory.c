// Device and pinned memory, both the host's, and copies between them.
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "cudart.h"

struct block {
    char *start;
    size_t size;
    int device; // the current one when it was allocated
    bool pinned;
};

// In the order of addresses. A program allocates few and large blocks, so that making room in the middle costs little.
static struct block *blocks;
static size_t count, room;

// The index of the first block that starts after `pointer`.
static size_t first_after(const void *pointer)
{
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if ((uintptr_t)blocks[middle].start <= (uintptr_t)pointer) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

// The block that `pointer` points into, or null.
static const struct block *find(const void *pointer)
{
    size_t index = first_after(pointer);
    if (index == 0) {
        return NULL;
    }
    const struct block *block = &blocks[index - 1];
    return (uintptr_t)pointer - (uintptr_t)block->start < block->size ? block : NULL;
}

static size_t used(int device)
{
    size_t sum = 0;
    for (size_t i = 0; i < count; i++) {
        if (blocks[i].device == device && !blocks[i].pinned) {
            sum += blocks[i].size;
        }
    }
    return sum;
}

static const char *kind_word(bool pinned)
{
    return pinned ? "pinned" : "device";
}

// Pages straight from the system come zeroed and aligned, and cost nothing before they are touched: a device may have
// more memory than the host. They go back when they are freed, so that a later use does not go unnoticed.
static cudaError_t allocate(void **pointer, size_t size, bool pinned)
{
    *pointer = NULL;
    if (size == 0) {
        return cudaSuccess;
    }
    int device = current_device();
    if (!pinned && size > settings.memory - used(device)) {
        return cudaErrorMemoryAllocation;
    }
    void *start = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) {
        return cudaErrorMemoryAllocation;
    }
    size_t index = first_after(start);
    blocks = grown(blocks, count, &room, sizeof *blocks);
    memmove(&blocks[index + 1], &blocks[index], (count - index) * sizeof *blocks);
    blocks[index] = (struct block){start, size, device, pinned};
    count++;
    note("ALLOC %s %zu", kind_word(pinned), size);
    *pointer = start;
    return cudaSuccess;
}

static cudaError_t release(void *pointer, bool pinned)
{
    if (pointer == NULL) {
        return cudaSuccess;
    }
    size_t index = first_after(pointer) - 1; // no such block: the largest size_t
    if (index >= count || blocks[index].start != pointer || blocks[index].pinned != pinned) {
        return cudaErrorInvalidValue;
    }
    note("FREE %s %zu", kind_word(pinned), blocks[index].size);
    munmap(blocks[index].start, blocks[index].size);
    count--;
    memmove(&blocks[index], &blocks[index + 1], (count - index) * sizeof *blocks);
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **pointer, size_t size)
{
    enter();
    cudaError_t error = forbid("cudaMalloc", UNSAFE, NULL);
    return leave(error != cudaSuccess ? error : allocate(pointer, size, false));
}

cudaError_t cudaFree(void *pointer)
{
    enter();
    cudaError_t error = forbid("cudaFree", UNSAFE, NULL);
    return leave(error != cudaSuccess ? error : release(pointer, false));
}

cudaError_t cudaHostAlloc(void **pointer, size_t size, unsigned flags)
{
    (void)flags;
    enter();
    cudaError_t error = forbid("cudaHostAlloc", UNSAFE, NULL);
    return leave(error != cudaSuccess ? error : allocate(pointer, size, true));
}

cudaError_t cudaMallocHost(void **pointer, size_t size)
{
    enter();
    cudaError_t error = forbid("cudaMallocHost", UNSAFE, NULL);
    return leave(error != cudaSuccess ? error : allocate(pointer, size, true));
}

cudaError_t cudaFreeHost(void *pointer)
{
    enter();
    cudaError_t error = forbid("cudaFreeHost", UNSAFE, NULL);
    return leave(error != cudaSuccess ? error : release(pointer, true));
}

cudaError_t cudaMemGetInfo(size_t *free, size_t *total)
{
    enter();
    *total = settings.memory;
    *free = settings.memory - used(current_device());
    return leave(cudaSuccess);
}

// What a captured allocation needs of a graph is not here, so that one is refused.
static cudaError_t admit_uncaptured(cudaStream_t stream, const char *function)
{
    struct graph *graph;
    cudaError_t error = admit(stream, function, &graph);
    if (error == cudaSuccess && graph != NULL) {
        error = broken(find_stream(stream)->capture, function, cudaErrorNotSupported);
    }
    return error;
}

cudaError_t cudaMallocFromPoolAsync(void **pointer, size_t size, cudaMemPool_t pool, cudaStream_t stream)
{
    (void)pool;
    enter();
    cudaError_t error = admit_uncaptured(stream, "cudaMallocFromPoolAsync");
    return leave(error != cudaSuccess ? error : allocate(pointer, size, false));
}

cudaError_t cudaFreeAsync(void *pointer, cudaStream_t stream)
{
    enter();
    cudaError_t error = admit_uncaptured(stream, "cudaFreeAsync");
    return leave(error != cudaSuccess ? error : release(pointer, false));
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *pointer)
{
    enter();
    const struct block *block = find(pointer);
    attributes->type = block == NULL    ? cudaMemoryTypeUnregistered
                       : block->pinned ? cudaMemoryTypeHost
                                       : cudaMemoryTypeDevice;
    attributes->device = block == NULL ? cudaInvalidDeviceId : block->device;
    attributes->devicePointer = block == NULL ? NULL : (void *)pointer;
    attributes->hostPointer = block != NULL && !block->pinned ? NULL : (void *)pointer;
    return leave(cudaSuccess);
}

// Whether the device can reach all of the bytes.
static bool reachable(const void *pointer, size_t size)
{
    const struct block *block = find(pointer);
    return block != NULL && size <= block->size - (size_t)((const char *)pointer - block->start);
}

static size_t extent(size_t width, size_t height, size_t pitch)
{
    return (height - 1) * pitch + width;
}

// Checks a copy as CUDA does, so far as it can know, and logs it.
static cudaError_t check_copy(const struct operation *operation, enum cudaMemcpyKind kind, const char *where)
{
    const struct block *to = find(operation->copy.to), *from = find(operation->copy.from);
    size_t height = operation->copy.height, width = operation->copy.width;
    bool to_fits = reachable(operation->copy.to, extent(width, height, operation->copy.to_pitch));
    bool from_fits = reachable(operation->copy.from, extent(width, height, operation->copy.from_pitch));
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (((to != NULL || to_device) && !to_fits) || ((from != NULL || from_device) && !from_fits)) {
        return cudaErrorInvalidValue;
    }
    bool to_host = to == NULL || to->pinned, from_host = from == NULL || from->pinned;
    bool pinned = (!to_host || to != NULL) && (!from_host || from != NULL);
    const char *memory = !to_host && !from_host ? "device" : pinned ? "pinned" : "pageable";
    note("COPY %c2%c %s %zu %s", from_host ? 'H' : 'D', to_host ? 'H' : 'D', memory, width * height, where);
    return cudaSuccess;
}

// Puts a copy on a stream.
static cudaError_t copy(struct operation operation, enum cudaMemcpyKind kind, cudaStream_t stream, const char *function)
{
    struct graph *graph;
    char where[32];
    enter();
    cudaError_t error = admit(stream, function, &graph);
    bool nothing = operation.copy.width == 0 || operation.copy.height == 0;
    if (error != cudaSuccess || nothing) {
        return leave(error);
    }
    snprintf(where, sizeof where, STREAM_FORMAT, STREAM_WORD(stream));
    error = check_copy(&operation, kind, where);
    if (error == cudaSuccess && graph != NULL) {
        graph_add(graph, &operation);
    }
    leave(error);
    if (error == cudaSuccess && graph == NULL) {
        perform(&operation);
    }
    return error;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    struct operation operation = {COPY, {.copy = {to, from, size, 1, size, size}}};
    return copy(operation, kind, stream, "cudaMemcpyAsync");
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    struct operation operation = {COPY, {.copy = {to, from, width, height, to_pitch, from_pitch}}};
    return copy(operation, kind, stream, "cudaMemcpy2DAsync");
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind)
{
    struct operation operation = {COPY, {.copy = {to, from, size, 1, size, size}}};
    enter();
    cudaError_t error = forbid("cudaMemcpy", SYNCHRONOUS, NULL);
    if (error == cudaSuccess && size != 0) {
        error = check_copy(&operation, kind, "sync");
    }
    if (error != cudaSuccess || size == 0) {
        return leave(error);
    }
    note("WAIT copy");
    flush_log();
    leave(cudaSuccess);
    perform(&operation);
    return cudaSuccess;
}

// A program's own variables on the device are not kept: they read as zeros.
cudaError_t cudaMemcpyFromSymbol(void *to, const void *symbol, size_t size, size_t offset, enum cudaMemcpyKind kind)
{
    (void)symbol, (void)offset;
    enter();
    cudaError_t error = forbid("cudaMemcpyFromSymbol", SYNCHRONOUS, NULL);
    if (error == cudaSuccess) {
        const struct block *block = find(to);
        bool host = kind != cudaMemcpyDeviceToDevice && (block == NULL || block->pinned);
        note("COPY D2%c %s %zu sync", host ? 'H' : 'D', !host ? "device" : block == NULL ? "pageable" : "pinned", size);
        note("WAIT copy");
        memset(to, 0, size);
    }
    return leave(error);
}

static cudaError_t check_fill(const void *to, size_t size)
{
    if (!reachable(to, size)) {
        return cudaErrorInvalidValue;
    }
    note("MEMSET %zu", size);
    return cudaSuccess;
}

cudaError_t cudaMemset(void *to, int value, size_t size)
{
    enter();
    cudaError_t error = forbid("cudaMemset", SYNCHRONOUS, NULL);
    if (error == cudaSuccess && size != 0) {
        error = check_fill(to, size);
    }
    leave(error);
    if (error == cudaSuccess && size != 0) {
        memset(to, value, size);
    }
    return error;
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t size, cudaStream_t stream)
{
    struct operation operation = {FILL, {.fill = {to, value, size}}};
    struct graph *graph;
    enter();
    cudaError_t error = admit(stream, "cudaMemsetAsync", &graph);
    if (error == cudaSuccess && size != 0) {
        error = check_fill(to, size);
        if (error == cudaSuccess && graph != NULL) {
            graph_add(graph, &operation);
        }
    }
    leave(error);
    if (error == cudaSuccess && size != 0 && graph == NULL) {
        perform(&operation);
    }
    return error;
}
