// cuBLASLt, as cublas.c. Descriptors are never looked into.
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "standin.h"

enum { SUCCESS = 0, EXECUTION_FAILED = 13 };

// One object stands for every handle and descriptor.
static char token;

#define CREATES(name)                                                                                                  \
    int name(void **object)                                                                                            \
    {                                                                                                                  \
        *object = &token;                                                                                              \
        return SUCCESS;                                                                                                \
    }

// Takes parameters that nothing depends on (cublas.c says why none are declared).
#define IGNORES(name)                                                                                                  \
    int name(void)                                                                                                     \
    {                                                                                                                  \
        return SUCCESS;                                                                                                \
    }

CREATES(cublasLtCreate)
CREATES(cublasLtMatmulDescCreate)
CREATES(cublasLtMatmulPreferenceCreate)
CREATES(cublasLtMatrixLayoutCreate)
CREATES(cublasLtMatrixTransformDescCreate)

IGNORES(cublasLtDestroy)
IGNORES(cublasLtMatmulDescDestroy)
IGNORES(cublasLtMatmulDescSetAttribute)
IGNORES(cublasLtMatmulPreferenceDestroy)
IGNORES(cublasLtMatmulPreferenceSetAttribute)
IGNORES(cublasLtMatrixLayoutDestroy)
IGNORES(cublasLtMatrixLayoutSetAttribute)
IGNORES(cublasLtMatrixTransformDescDestroy)
IGNORES(cublasLtMatmulAlgoInit)
IGNORES(cublasLtMatmulAlgoConfigSetAttribute)

// cublasLtMatmulHeuristicResult_t
struct result {
    uint64_t algorithm[8];
    size_t workspace;
    int status;
    float waves;
    int reserved[4];
};

// One way to make any product, which needs no workspace.
int cublasLtMatmulAlgoGetHeuristic(void *handle, void *operation, void *a, void *b, void *c, void *d, void *preference,
                                   int wanted, struct result *results, int *found)
{
    (void)handle, (void)operation, (void)a, (void)b, (void)c, (void)d, (void)preference;
    *found = wanted > 0;
    if (wanted > 0) {
        memset(results, 0, sizeof *results);
        results->waves = 1;
    }
    return SUCCESS;
}

static int work(enum standin_kind kind, const char *function, void *stream)
{
    return standin_work(kind, function, stream) == 0 ? SUCCESS : EXECUTION_FAILED;
}

int cublasLtMatmul(void *handle, void *operation, const void *alpha, const void *a, void *a_layout, const void *b,
                   void *b_layout, const void *beta, const void *c, void *c_layout, void *d, void *d_layout,
                   const void *algorithm, void *workspace, size_t workspace_size, void *stream)
{
    (void)handle, (void)operation, (void)alpha, (void)a, (void)a_layout, (void)b, (void)b_layout, (void)beta;
    (void)c, (void)c_layout, (void)d, (void)d_layout, (void)algorithm, (void)workspace, (void)workspace_size;
    return work(STANDIN_PRODUCT, "cublasLtMatmul", stream);
}

int cublasLtMatrixTransform(void *handle, void *operation, const void *alpha, const void *a, void *a_layout,
                            const void *beta, const void *b, void *b_layout, void *c, void *c_layout, void *stream)
{
    (void)handle, (void)operation, (void)alpha, (void)a, (void)a_layout, (void)beta, (void)b, (void)b_layout;
    (void)c, (void)c_layout;
    return work(STANDIN_KERNEL, "cublasLtMatrixTransform", stream);
}
