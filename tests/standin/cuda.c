// The driver's library, of which ONNX Runtime's provider imports one function.

int cuTensorMapEncodeTiled(void)
{
    return 0; // the map is only ever read by a kernel
}

int cuInit(unsigned flags)
{
    (void)flags;
    return 0;
}

int cuDriverGetVersion(int *version)
{
    *version = 13000; // as cudart.c has it
    return 0;
}
