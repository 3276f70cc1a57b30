// What the stand-ins of NVIDIA's other libraries call in the stand-in of libcudart, which alone keeps the log and knows
// which stream is captured.
#ifndef STANDIN_H
#define STANDIN_H

enum standin_kind {
    STANDIN_KERNEL,  // logged as `KERNEL <stream> <function>`
    STANDIN_PRODUCT, // logged as `GEMM <function>`
    STANDIN_CUDNN,   // logged as `CUDNN <function>`
};

// Takes work that a library's function puts on a stream: logs it, and counts it into the graph where the stream is
// captured. Returns a cudaError_t, 0 where the work was taken.
int standin_work(enum standin_kind kind, const char *function, void *stream);

#endif
