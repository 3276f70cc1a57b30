// cuRAND: ONNX Runtime's provider names the library among those it needs, and calls nothing in it.

int curandGetVersion(int *version)
{
    *version = 10400;
    return 0;
}
