// The words that CUDA's headers put before their declarations, for a compiler that is not NVIDIA's. The folder with
// cuda_runtime_api.h has a `crt/host_defines.h` of its own in a full toolkit, which then comes first; the runtime's
// own package leaves it out.
#ifndef STANDIN_HOST_DEFINES_H
#define STANDIN_HOST_DEFINES_H

#define __host__
#define __device__
#define __global__
#define __shared__
#define __constant__
#define __managed__
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __cudart_builtin__
#define __launch_bounds__(...)
#define __no_return__ __attribute__((noreturn))
#define __noinline__ __attribute__((noinline))
#define __forceinline__ __inline__ __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __align__(n)
#define __thread__ __thread
#define __import__
#define __export__
#define __cdecl
#define __location__(a)
#define CUDARTAPI
#define CUDARTAPI_CDECL

#endif
