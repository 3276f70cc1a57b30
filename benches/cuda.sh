#!/usr/bin/env bash
# lstc on a real card, in one prepared run of less than 8 minutes: losses against the CPU's, and what a step of T5-base takes beside
# PyTorch's. It takes two machines, of which the one with the card needs no network, no Rust and no ONNX Runtime.
#
# Where lstc is built (Python 3 with pip; xz):
#
#     cargo build --release
#     benches/cuda.sh pack [OUT] [--arch 90] [--whole]
#
# writes OUT (target/cuda): the binary and ONNX Runtime with GPU code for one architecture (90: H100 and H200, 80: A100, 89: L4,
# 120: RTX 50), 25 MiB in parts of 20. Of that code, kernels that lstc's graphs never launch are left out: fused attention, mixtures of
# experts, and cutlass's products. --whole keeps them, in 60 MiB.
# ORT_GPU_WHEEL names a wheel of onnxruntime-gpu, or a folder with its three libraries; else pip fetches it.
#
# Where the card is (Linux on x86-64 with glibc 2.34 or later; python3 with numpy, and torch for CUDA 13 with NVIDIA's libraries beside
# it), in a checkout that OUT was carried into:
#
#     benches/cuda.sh run [OUT] [RESULTS] [--budget 420]
#
# prints two tables and writes RESULTS/table.md, results.json and log.txt. --budget is the seconds that measuring may take; to unpack
# takes some more. On a machine that is lent for 10 minutes a command: bash benches/cuda.sh run target/cuda "$OUT"
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
VERSION=1.31.1
LIBRARIES=("libonnxruntime.so.$VERSION" libonnxruntime_providers_shared.so libonnxruntime_providers_cuda.so)
MOST=$((62 << 20))
# In names of kernels that are left out.
NEVER_LAUNCHED='cutlass|flash|fmha|moe|MoE|fpA_intB'

fail() {
    echo "error: $*" >&2
    exit 2
}

# Lays the three libraries of ONNX Runtime into folder $1.
fetch() {
    local given=${ORT_GPU_WHEEL:-}
    if [ -z "$given" ]; then
        echo "fetching onnxruntime-gpu $VERSION" >&2
        python3 -m pip download --quiet --no-deps --only-binary=:all: --dest "$scratch/wheel" "onnxruntime-gpu==$VERSION"
        given=$(echo "$scratch"/wheel/*.whl)
    fi
    for library in "${LIBRARIES[@]}"; do
        if [ -d "$given" ]; then
            cp "$given/$library" "$1/"
        else
            python3 -c 'import sys, zipfile; sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read(sys.argv[2]))' \
                "$given" "onnxruntime/capi/$library" >"$1/$library"
        fi
    done
}

pack() {
    local out=$here/../target/cuda architecture=90 without=("$NEVER_LAUNCHED")
    while [ $# -gt 0 ]; do
        case $1 in
            --arch) architecture=$2; shift 2 ;;
            --whole) without=(); shift ;;
            -*) fail "no such flag: $1" ;;
            *) out=$1; shift ;;
        esac
    done
    local binary=$here/../target/release/lstc payload=$scratch/payload
    [ -x "$binary" ] || fail "there is no $binary: run \`cargo build --release\`"
    mkdir -p "$payload" "$scratch/whole"
    fetch "$scratch/whole"
    mv "$scratch/whole/"*shared.so "$scratch/whole/libonnxruntime.so.$VERSION" "$payload/"
    local provider=libonnxruntime_providers_cuda.so
    [ ${#without[@]} -eq 0 ] || python3 -m pip install --quiet --root-user-action=ignore --target "$scratch/site" zstandard
    PYTHONPATH=$scratch/site python3 -B "$here/slim_cuda.py" "$scratch/whole/$provider" "$payload/$provider" "$architecture" \
        ${without[@]+"${without[@]}"}
    strip -o "$payload/lstc" "$binary"
    echo "$architecture" >"$payload/architecture"

    rm -rf "$out"
    mkdir -p "$out"
    echo "packing" >&2
    tar -C "$payload" --owner=0 --group=0 -c . | xz -T1 --x86 --lzma2=preset=9e,dict=192MiB | split -d -b 20M - "$out/part."
    (cd "$out" && sha256sum part.* >sha256)
    local size
    size=$(cat "$out"/* | wc -c)
    echo "$out: $(((size >> 20) + 1)) MiB in $(echo "$out"/part.* | wc -w) parts"
    [ "$size" -le "$MOST" ] || fail "that is more than 62 MiB"
}

# The folders of NVIDIA's libraries that came as Python packages, as a search path.
nvidia_libraries() {
    python3 - <<'PYTHON'
import os
try:
    import nvidia
    roots = list(nvidia.__path__)
except ImportError:
    roots = []
folders = sorted(f for root in roots for f, _, files in os.walk(root) if any(".so" in file for file in files))
print(":".join([*folders, *(f for f in ("/usr/local/nvidia/lib64", "/usr/local/cuda/lib64") if os.path.isdir(f))]))
PYTHON
}

run() {
    local places=()
    while [ $# -gt 0 ] && [[ $1 != -* ]]; do
        places+=("$1"); shift
    done
    local packed=${places[0]:-$here/../target/cuda} results=${places[1]:-$here/../target/cuda-results} unpacked=$scratch/unpacked
    [ -f "$packed/sha256" ] || fail "there is no $packed/sha256: \`benches/cuda.sh pack\` makes it"
    (cd "$packed" && sha256sum --check --quiet sha256) || fail "$packed is damaged or lacks a part"
    mkdir -p "$results" "$unpacked"
    SECONDS=0
    cat "$packed"/part.* >"$scratch/payload"
    python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter="data")' "$scratch/payload" "$unpacked"
    echo "unpacked in $SECONDS s"

    local architecture has
    architecture=$(cat "$unpacked/architecture")
    has=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .) || has=
    if [ -n "$has" ] && [ "$has" != "$architecture" ]; then
        echo "warning: packed for architecture $architecture, but the card is of $has" >&2
    fi
    # The libraries are for lstc alone: PyTorch's processes are left with the search path that they had. What was left out of ONNX
    # Runtime must not be loaded before it is used, which never happens.
    CUDA_MODULE_LOADING=LAZY PYTHONUNBUFFERED=1 python3 -B "$here/cuda.py" --lstc "$unpacked/lstc" --out "$results" \
        --runtime "$unpacked/libonnxruntime.so.$VERSION" --libraries "$(nvidia_libraries):${LD_LIBRARY_PATH:-}" "$@"
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
case ${1:-} in
    pack | run) "$@" ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
