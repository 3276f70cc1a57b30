// cuDNN, as ONNX Runtime's provider looks it up: operations are logged and counted, descriptors are never looked into.
//
// Convolutions and recurrent networks, for which the provider asks questions that would need true answers, are refused.
// As in cublas.c, only the parameters that matter are declared.
#include <stddef.h>
#include <stdlib.h>

#include "standin.h"

enum { SUCCESS = 0, ALLOC_FAILED = 1003, NOT_SUPPORTED = 3000, EXECUTION_FAILED = 5000 };

struct handle {
    void *stream;
};

// One object stands for every descriptor.
static char token;

#define OPERATION(name)                                                                                                \
    int name(struct handle *handle)                                                                                    \
    {                                                                                                                  \
        return standin_work(STANDIN_CUDNN, #name, handle->stream) == 0 ? SUCCESS : EXECUTION_FAILED;                   \
    }

#define CREATES(name)                                                                                                  \
    int name(void **descriptor)                                                                                        \
    {                                                                                                                  \
        *descriptor = &token;                                                                                          \
        return SUCCESS;                                                                                                \
    }

#define IGNORES(name)                                                                                                  \
    int name(void)                                                                                                     \
    {                                                                                                                  \
        return SUCCESS;                                                                                                \
    }

#define REFUSES(name)                                                                                                  \
    int name(void)                                                                                                     \
    {                                                                                                                  \
        return NOT_SUPPORTED;                                                                                          \
    }

int cudnnCreate(struct handle **handle)
{
    *handle = calloc(1, sizeof **handle);
    return *handle == NULL ? ALLOC_FAILED : SUCCESS;
}

int cudnnDestroy(struct handle *handle)
{
    free(handle);
    return SUCCESS;
}

int cudnnSetStream(struct handle *handle, void *stream)
{
    handle->stream = stream;
    return SUCCESS;
}

int cudnnGetStream(struct handle *handle, void **stream)
{
    *stream = handle->stream;
    return SUCCESS;
}

size_t cudnnGetVersion(void)
{
    return 91300;
}

const char *cudnnGetErrorString(int status)
{
    return status == SUCCESS         ? "CUDNN_STATUS_SUCCESS"
           : status == NOT_SUPPORTED ? "CUDNN_STATUS_NOT_SUPPORTED"
                                     : "CUDNN_STATUS_EXECUTION_FAILED";
}

void cudnnGetLastErrorString(char *message, size_t size)
{
    if (size > 0) {
        *message = '\0';
    }
}

OPERATION(cudnnActivationForward)
OPERATION(cudnnAddTensor)
OPERATION(cudnnBatchNormalizationForwardInference)
OPERATION(cudnnBatchNormalizationForwardTraining)
OPERATION(cudnnLRNCrossChannelForward)
OPERATION(cudnnPoolingForward)
OPERATION(cudnnReduceTensor)
OPERATION(cudnnSoftmaxForward)

// Neither reductions nor dropout need memory of their own here.
static int no_size(size_t *size)
{
    *size = 0;
    return SUCCESS;
}

int cudnnGetReductionIndicesSize(void *handle, void *reduction, void *a, void *c, size_t *size)
{
    (void)handle, (void)reduction, (void)a, (void)c;
    return no_size(size);
}

int cudnnGetReductionWorkspaceSize(void *handle, void *reduction, void *a, void *c, size_t *size)
{
    (void)handle, (void)reduction, (void)a, (void)c;
    return no_size(size);
}

int cudnnDropoutGetStatesSize(void *handle, size_t *size)
{
    (void)handle;
    return no_size(size);
}

CREATES(cudnnCreateActivationDescriptor)
CREATES(cudnnCreateConvolutionDescriptor)
CREATES(cudnnCreateDropoutDescriptor)
CREATES(cudnnCreateFilterDescriptor)
CREATES(cudnnCreateLRNDescriptor)
CREATES(cudnnCreatePoolingDescriptor)
CREATES(cudnnCreateRNNDataDescriptor)
CREATES(cudnnCreateRNNDescriptor)
CREATES(cudnnCreateReduceTensorDescriptor)
CREATES(cudnnCreateTensorDescriptor)

IGNORES(cudnnDeriveBNTensorDescriptor)
IGNORES(cudnnDestroyActivationDescriptor)
IGNORES(cudnnDestroyConvolutionDescriptor)
IGNORES(cudnnDestroyDropoutDescriptor)
IGNORES(cudnnDestroyFilterDescriptor)
IGNORES(cudnnDestroyLRNDescriptor)
IGNORES(cudnnDestroyPoolingDescriptor)
IGNORES(cudnnDestroyRNNDataDescriptor)
IGNORES(cudnnDestroyRNNDescriptor)
IGNORES(cudnnDestroyReduceTensorDescriptor)
IGNORES(cudnnDestroyTensorDescriptor)
IGNORES(cudnnSetActivationDescriptor)
IGNORES(cudnnSetConvolutionGroupCount)
IGNORES(cudnnSetConvolutionMathType)
IGNORES(cudnnSetConvolutionNdDescriptor)
IGNORES(cudnnSetDropoutDescriptor)
IGNORES(cudnnSetFilterNdDescriptor)
IGNORES(cudnnSetLRNDescriptor)
IGNORES(cudnnSetPoolingNdDescriptor)
IGNORES(cudnnSetRNNDataDescriptor)
IGNORES(cudnnSetRNNDescriptor_v8)
IGNORES(cudnnSetReduceTensorDescriptor)
IGNORES(cudnnSetTensorNdDescriptor)

REFUSES(cudnnBackendCreateDescriptor)
REFUSES(cudnnBackendDestroyDescriptor)
REFUSES(cudnnBackendExecute)
REFUSES(cudnnBackendFinalize)
REFUSES(cudnnBackendGetAttribute)
REFUSES(cudnnBackendSetAttribute)
REFUSES(cudnnConvolutionBiasActivationForward)
REFUSES(cudnnConvolutionForward)
REFUSES(cudnnFindConvolutionForwardAlgorithmEx)
REFUSES(cudnnGetConvolutionForwardAlgorithm_v7)
REFUSES(cudnnGetConvolutionForwardWorkspaceSize)
REFUSES(cudnnGetRNNTempSpaceSizes)
REFUSES(cudnnGetRNNWeightParams)
REFUSES(cudnnGetTensorNdDescriptor)
REFUSES(cudnnRNNForward)
