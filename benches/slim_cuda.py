"""Removes GPU machine code that a run does not need from a CUDA library, so that it compresses well.

    python benches/slim_cuda.py libonnxruntime_providers_cuda.so slim.so 90
    python benches/slim_cuda.py libonnxruntime_providers_cuda.so slim.so 90 'flash|cutlass'

keeps the code of one architecture and, of that, no translation unit with a kernel that the pattern finds (which takes the package
`zstandard`). Of onnxruntime-gpu 1.31.1, 142 of 284 MB belong to the other architectures.

The code of a translation unit lies in a container: a header of 16 bytes (magic, version u16, length of the header u16, length of
what follows u64), then its entries (kind u16, version u16, length of the header u32, length of the code u64, ..., architecture u32
at 28). The code is an ELF file, as a zstd frame. What goes is overwritten with zeros. Nothing moves, and headers stay as they are:
the loader passes over other architectures, and CUDA loads a translation unit when one of its kernels is first used.
"""

import mmap
import re
import shutil
import struct
import sys

MAGIC = (0xBA55ED50).to_bytes(4, "little")
CONTAINER, ENTRY = struct.Struct("<IHHQ"), struct.Struct("<HHIQ12xI")
KINDS = (1, 2, 4, 8, 16)


def entries(library):
    """Of each entry in a mapped library: where its code begins and ends, and its architecture."""
    at = library.find(MAGIC)
    while at >= 0:
        _, version, header, length = CONTAINER.unpack_from(library, at)
        if (version, header) == (1, CONTAINER.size):
            entry, end = at + header, min(at + header + length, len(library))
            while entry + ENTRY.size <= end:
                kind, _, header, length, architecture = ENTRY.unpack_from(library, entry)
                if kind not in KINDS or not ENTRY.size <= header <= 4096:
                    break
                yield entry + header, entry + header + length, architecture
                entry += header + length
        at = library.find(MAGIC, at + len(MAGIC))


def kernels(code):
    """The names of a translation unit's kernels, which are those of its sections, in one text."""
    import zstandard

    elf = zstandard.ZstdDecompressor().decompressobj().decompress(code)
    return " ".join(name.decode() for name in re.findall(rb"\.text\.([\w$]+)", elf))


def slim(source, target, architecture, without=None):
    """Writes the library; the bytes of code that stay, and those that were overwritten."""
    shutil.copy(source, target)
    kept = blanked = 0
    with open(target, "r+b") as file, mmap.mmap(file.fileno(), 0) as library:
        for start, end, of in entries(library):
            if of == architecture and not (without and re.search(without, kernels(library[start:end]))):
                kept += end - start
            else:
                library[start:end] = bytes(end - start)
                blanked += end - start
    return kept, blanked


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    kept, blanked = slim(*sys.argv[1:3], int(sys.argv[3]), *sys.argv[4:])
    if kept == 0:
        sys.exit(f"{sys.argv[1]} has no code for architecture {sys.argv[3]}")
    print(f"{kept / 1e6:.1f} MB of GPU code stay, {blanked / 1e6:.1f} MB are overwritten")
