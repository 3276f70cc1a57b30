#!/usr/bin/env bash
# build.sh OUT HEADERS: builds the stand-in CUDA device. README.md says what that is.
#
# OUT/lib    libcudart.so.13, libcublas.so.13, libcublasLt.so.13, libcurand.so.10, libcuda.so.1
# OUT/cudnn  libcudnn.so.9, apart, so that a program can be tried without it
#
# HEADERS is the folder with cuda_runtime_api.h of CUDA 13, as in the Python package nvidia-cuda-runtime. CC names the
# compiler, cc by default; any that takes the options of GCC will do.
set -euo pipefail

if [ $# -ne 2 ]; then
    echo "usage: build.sh OUT HEADERS" >&2
    exit 2
fi
if [ ! -f "$2/cuda_runtime_api.h" ]; then
    echo "build.sh: there is no cuda_runtime_api.h in $2" >&2
    exit 1
fi
here=$(cd "$(dirname "$0")" && pwd)
headers=$(cd "$2" && pwd)
mkdir -p "$1/lib" "$1/cudnn"
out=$(cd "$1" && pwd)
work=$(mktemp -d "$out/building.XXXXXX")
trap 'rm -rf "$work"' EXIT

# library FOLDER NAME 'SYMBOLS' INPUT...: only SYMBOLS are seen outside, at the version that NVIDIA's library gives them,
# which is its own name. The libraries find each other wherever they lie, as long as they lie together.
library() {
    local file="$out/$1/$2"
    printf '%s { global: %s local: *; };\n' "$2" "$3" > "$work/$2.map"
    "${CC:-cc}" -std=c11 -D_GNU_SOURCE -O2 -Wall -Wextra ${CFLAGS:-} -fPIC -shared \
        -isystem "$headers" -isystem "$here" "${@:4}" -o "$work/$2" -pthread -ldl \
        -Wl,-soname,"$2" -Wl,--version-script="$work/$2.map" -Wl,-rpath,'$ORIGIN:$ORIGIN/../lib' -Wl,-z,defs
    mv "$work/$2" "$file" # at once, so that a program that has the old one loaded keeps it
}

cd "$here"
library lib libcudart.so.13 'cuda*; __cuda*; standin_*;' cudart.c log.c memory.c stream.c capture.c kernels.c
cudart="$out/lib/libcudart.so.13"
library lib libcublas.so.13 'cublas*;' cublas.c "$cudart"
library lib libcublasLt.so.13 'cublasLt*;' cublaslt.c "$cudart"
library lib libcurand.so.10 'curand*;' curand.c
library lib libcuda.so.1 'cu*;' cuda.c
library cudnn libcudnn.so.9 'cudnn*;' cudnn.c "$cudart"
