// Devices, errors' names, and what else of libcudart needs neither memory nor streams.
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "cudart.h"

enum { VERSION = 13000 }; // 13.0, for which ONNX Runtime's provider was built

// What the chips differ in, as far as the provider looks; one that is not here is taken for the one before it.
static const struct chip {
    int chip;
    int processors, threads_per_processor;
    int shared_per_processor, shared_per_block;
    int cache;
} chips[] = {
    {70, 80, 2048, 96 << 10, 96 << 10, 6 << 20},    {75, 40, 1024, 64 << 10, 64 << 10, 4 << 20},
    {80, 108, 2048, 164 << 10, 163 << 10, 40 << 20}, {86, 84, 1536, 100 << 10, 99 << 10, 6 << 20},
    {89, 142, 1536, 100 << 10, 99 << 10, 96 << 20},  {90, 132, 2048, 228 << 10, 227 << 10, 50 << 20},
    {100, 148, 2048, 228 << 10, 227 << 10, 126 << 20}, {120, 170, 1536, 100 << 10, 99 << 10, 96 << 20},
};

static _Thread_local int device;

static const struct chip *chip(void)
{
    const struct chip *found = chips;
    for (size_t i = 0; i < sizeof chips / sizeof *chips && chips[i].chip <= settings.chip; i++) {
        found = &chips[i];
    }
    return found;
}

int current_device(void)
{
    return device;
}

static cudaError_t check_device(int index)
{
    return remember(index >= 0 && index < settings.devices ? cudaSuccess : cudaErrorInvalidDevice);
}

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = settings.devices;
    return remember(settings.devices == 0 ? cudaErrorNoDevice : cudaSuccess);
}

cudaError_t cudaGetDevice(int *index)
{
    *index = device;
    return remember(settings.devices == 0 ? cudaErrorNoDevice : cudaSuccess);
}

cudaError_t cudaSetDevice(int index)
{
    cudaError_t error = check_device(index);
    if (error == cudaSuccess) {
        device = index;
    }
    return error;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = VERSION;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = VERSION;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int index)
{
    if (check_device(index) != cudaSuccess) {
        return cudaErrorInvalidDevice;
    }
    const struct chip *c = chip();
    memset(properties, 0, sizeof *properties);
    snprintf(properties->name, sizeof properties->name, "stand-in %d.%d", settings.chip / 10, settings.chip % 10);
    properties->uuid.bytes[0] = (char)(index + 1);
    properties->pciBusID = index + 1;
    properties->major = settings.chip / 10;
    properties->minor = settings.chip % 10;
    properties->totalGlobalMem = settings.memory;
    properties->totalConstMem = 64 << 10;
    properties->multiProcessorCount = c->processors;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = 1024;
    properties->maxThreadsPerMultiProcessor = c->threads_per_processor;
    properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
    properties->maxThreadsDim[2] = 64;
    properties->maxGridSize[0] = 0x7fffffff;
    properties->maxGridSize[1] = properties->maxGridSize[2] = 0xffff;
    properties->maxBlocksPerMultiProcessor = 32;
    properties->sharedMemPerBlock = 48 << 10;
    properties->sharedMemPerBlockOptin = (size_t)c->shared_per_block;
    properties->sharedMemPerMultiprocessor = (size_t)c->shared_per_processor;
    properties->reservedSharedMemPerBlock = 1 << 10;
    properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
    properties->l2CacheSize = c->cache;
    properties->memPitch = 0x7fffffff;
    properties->textureAlignment = 512;
    properties->memoryBusWidth = 5120;
    properties->asyncEngineCount = 3;
    properties->concurrentKernels = properties->cooperativeLaunch = properties->unifiedAddressing = 1;
    properties->canMapHostMemory = properties->memoryPoolsSupported = properties->streamPrioritiesSupported = 1;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int index)
{
    struct cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, index) != cudaSuccess) {
        return cudaErrorInvalidDevice;
    }
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
        *value = properties.major;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *value = properties.minor;
        break;
    case cudaDevAttrMultiProcessorCount:
        *value = properties.multiProcessorCount;
        break;
    case cudaDevAttrWarpSize:
        *value = properties.warpSize;
        break;
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY:
        *value = properties.maxThreadsPerBlock;
        break;
    case cudaDevAttrMaxBlockDimZ:
        *value = properties.maxThreadsDim[2];
        break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
        *value = properties.maxThreadsPerMultiProcessor;
        break;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
        *value = properties.maxBlocksPerMultiProcessor;
        break;
    case cudaDevAttrMaxGridDimX:
        *value = properties.maxGridSize[0];
        break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
        *value = properties.maxGridSize[1];
        break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = (int)properties.sharedMemPerBlock;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = (int)properties.sharedMemPerBlockOptin;
        break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = (int)properties.sharedMemPerMultiprocessor;
        break;
    case cudaDevAttrReservedSharedMemoryPerBlock:
        *value = (int)properties.reservedSharedMemPerBlock;
        break;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor:
        *value = properties.regsPerBlock;
        break;
    case cudaDevAttrL2CacheSize:
        *value = properties.l2CacheSize;
        break;
    case cudaDevAttrPciBusId:
        *value = properties.pciBusID;
        break;
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrCooperativeLaunch:
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrCanMapHostMemory:
    case cudaDevAttrMemoryPoolsSupported:
    case cudaDevAttrStreamPrioritiesSupported:
        *value = 1;
        break;
    default:
        *value = 0;
        break;
    }
    return cudaSuccess;
}

// Memory pools: an allocation from one is an ordinary one (memory.c).

cudaError_t cudaMemPoolCreate(cudaMemPool_t *pool, const struct cudaMemPoolProps *properties)
{
    (void)properties;
    static char token;
    *pool = (cudaMemPool_t)&token;
    return cudaSuccess;
}

cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool)
{
    (void)pool;
    return cudaSuccess;
}

cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr attribute, void *value)
{
    (void)pool;
    bool is_int = attribute == cudaMemPoolReuseFollowEventDependencies ||
                  attribute == cudaMemPoolReuseAllowOpportunistic ||
                  attribute == cudaMemPoolReuseAllowInternalDependencies;
    memset(value, 0, is_int ? sizeof(int) : sizeof(unsigned long long));
    return cudaSuccess;
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr attribute, void *value)
{
    (void)pool, (void)attribute, (void)value;
    return cudaSuccess;
}

cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t size)
{
    (void)pool, (void)size;
    return cudaSuccess;
}

// The driver's own functions, of which the stand-in of libcuda has hardly any.
cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned version,
                                             unsigned long long flags, enum cudaDriverEntryPointQueryResult *result)
{
    (void)version, (void)flags;
    void *driver = dlopen("libcuda.so.1", RTLD_LAZY);
    *function = driver == NULL ? NULL : dlsym(driver, symbol);
    if (result != NULL) {
        *result = *function == NULL ? cudaDriverEntryPointSymbolNotFound : cudaDriverEntryPointSuccess;
    }
    return cudaSuccess;
}

static const struct {
    cudaError_t error;
    const char *name, *text;
} errors[] = {
#define ERROR(name, text) {name, #name, text}
    ERROR(cudaSuccess, "no error"),
    ERROR(cudaErrorInvalidValue, "invalid argument"),
    ERROR(cudaErrorMemoryAllocation, "out of memory"),
    ERROR(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    ERROR(cudaErrorMissingConfiguration, "__global__ function call is not configured"),
    ERROR(cudaErrorInvalidDeviceFunction, "invalid device function"),
    ERROR(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    ERROR(cudaErrorInvalidDevice, "invalid device ordinal"),
    ERROR(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    ERROR(cudaErrorIllegalState, "the operation cannot be performed in the present state"),
    ERROR(cudaErrorNotReady, "device not ready"),
    ERROR(cudaErrorNotSupported, "operation not supported"),
    ERROR(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing"),
    ERROR(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture"),
    ERROR(cudaErrorStreamCaptureMerge, "operation would result in a merge of separate capture sequences"),
    ERROR(cudaErrorStreamCaptureUnmatched, "capture was not ended in the same stream as it began"),
    ERROR(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream"),
    ERROR(cudaErrorStreamCaptureImplicit,
          "operation would make the legacy stream depend on a capturing blocking stream"),
    ERROR(cudaErrorCapturedEvent, "operation not permitted on an event last recorded in a capturing stream"),
    ERROR(cudaErrorStreamCaptureWrongThread,
          "attempt to terminate a thread-local capture sequence from another thread"),
};

const char *cudaGetErrorName(cudaError_t error)
{
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        if (errors[i].error == error) {
            return errors[i].name;
        }
    }
    return "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t error)
{
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        if (errors[i].error == error) {
            return errors[i].text;
        }
    }
    return "unrecognized error code";
}
