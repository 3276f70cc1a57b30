// cuBLAS: products are logged and counted, and leave their result as it was.
//
// Only the handle is looked at, which comes first everywhere. The functions are declared with that one parameter: by
// the C calling conventions of Linux, further arguments of a caller do no harm.
#include <stdlib.h>

#include "standin.h"

enum { SUCCESS = 0, ALLOC_FAILED = 3, EXECUTION_FAILED = 13 };

struct handle {
    void *stream;
    int math_mode;
};

int cublasCreate_v2(struct handle **handle)
{
    *handle = calloc(1, sizeof **handle);
    return *handle == NULL ? ALLOC_FAILED : SUCCESS;
}

int cublasDestroy_v2(struct handle *handle)
{
    free(handle);
    return SUCCESS;
}

int cublasSetStream_v2(struct handle *handle, void *stream)
{
    handle->stream = stream;
    return SUCCESS;
}

int cublasGetStream_v2(struct handle *handle, void **stream)
{
    *stream = handle->stream;
    return SUCCESS;
}

int cublasSetMathMode(struct handle *handle, int mode)
{
    handle->math_mode = mode;
    return SUCCESS;
}

int cublasGetMathMode(struct handle *handle, int *mode)
{
    *mode = handle->math_mode;
    return SUCCESS;
}

const char *cublasGetStatusName(int status)
{
    return status == SUCCESS ? "CUBLAS_STATUS_SUCCESS" : "CUBLAS_STATUS_EXECUTION_FAILED";
}

const char *cublasGetStatusString(int status)
{
    return status == SUCCESS ? "the operation completed successfully" : "the function failed to launch on the GPU";
}

static int work(enum standin_kind kind, const char *function, const struct handle *handle)
{
    return standin_work(kind, function, handle->stream) == 0 ? SUCCESS : EXECUTION_FAILED;
}

#define PRODUCT(name)                                                                                                  \
    int name(struct handle *handle)                                                                                    \
    {                                                                                                                  \
        return work(STANDIN_PRODUCT, #name, handle);                                                                   \
    }

#define OTHER(name)                                                                                                    \
    int name(struct handle *handle)                                                                                    \
    {                                                                                                                  \
        return work(STANDIN_KERNEL, #name, handle);                                                                    \
    }

PRODUCT(cublasSgemm_v2)
PRODUCT(cublasDgemm_v2)
PRODUCT(cublasGemmEx)
PRODUCT(cublasSgemmBatched)
PRODUCT(cublasDgemmBatched)
PRODUCT(cublasGemmBatchedEx)
PRODUCT(cublasSgemmStridedBatched)
PRODUCT(cublasDgemmStridedBatched)
PRODUCT(cublasGemmStridedBatchedEx)

// Sums, transposes, scalings, copies and factorisations.
OTHER(cublasSgeam)
OTHER(cublasDgeam)
OTHER(cublasSscal_v2)
OTHER(cublasScopy_v2)
OTHER(cublasSgetrfBatched)
OTHER(cublasDgetrfBatched)
OTHER(cublasSgetriBatched)
OTHER(cublasDgetriBatched)
