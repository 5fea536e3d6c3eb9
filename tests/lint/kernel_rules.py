"""What a kernel may see. A .cu file compiles twice, by nvcc and by g++ against the execution model of the tests, so it is written in the
language of index/base/cuda/device.h alone: with standard headers, those of index/base/cuda, and plain headers of its own folder. Nothing
that it includes brings Abseil, libtorch or CUDA's own names. Only the standard library is used."""

import re
from typing import Callable, Dict, Iterable, List, Optional, Set, Tuple

LANGUAGE = "index/base/cuda/device.h"
# The two sides of the language and of the runtime, and the probe, which measures CUDA itself and never runs on the host:
# here CUDA is spoken, and what both compilers see differs.
OF_CUDA = {LANGUAGE, "index/base/cuda/device_nvcc.h", "index/base/cuda/runtime.cu", "tests/gpu/probe.cu"}
SHARED_FOLDER = "index/base/cuda"
CPP_SUFFIXES = (".h", ".cc", ".cu", ".cuh")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
STANDARD_HEADER = re.compile(r"^[a-z_]+$")
CUDA_HEADER = re.compile(r"^(?:cuda|cublas|cooperative_groups|mma\.h|device_launch|driver_types|nv/|cub/|thrust/)")
TWO_FACES = re.compile(r"\b__CUDACC__\b|\b__CUDA_ARCH__\b|\b__NVCC__\b")
# CUDA's words, which device.h has other ones for.
CUDA_WORD = re.compile(r"\b(__shared__|__global__|__device__|__launch_bounds__|__syncthreads|__syncwarp|__shfl\w*|__ballot\w*|threadIdx|blockIdx|"
                       r"blockDim|gridDim|atomic[A-Z]\w*|__threadfence\w*|asm|printf)\b|<<<|#\s*pragma\s+unroll")

Fault = Tuple[str, str, int, str]  # Rule, path, line, message.


def code_lines(text: str) -> Iterable[Tuple[int, str]]:
    return ((number, line.split("//")[0]) for number, line in enumerate(text.splitlines(), 1))


def folder_of(path: str) -> str:
    return path.rsplit("/", 1)[0]


def include_faults(path: str, text: str, folder: str) -> Tuple[List[Fault], List[str]]:
    """What of a kernel's file, or of a header it sees, is not for kernels; and the headers to look at next."""
    faults, seen = [], []
    for number, line in enumerate(text.splitlines(), 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        quoted, name = match.group(1) == '"', match.group(2)
        if quoted and folder_of(name) in (folder, SHARED_FOLDER):
            seen.append(name)
        elif quoted or not STANDARD_HEADER.match(name):
            faults.append(("kernel-include", path, number,
                           f"{name}: kernels see standard headers, {SHARED_FOLDER}/ and plain headers of their own folder"))
    return faults, seen


def kernel_faults(path: str, read: Callable[[str], Optional[str]]) -> List[Fault]:
    """Of one .cu file and all that it includes of this repository."""
    faults: List[Fault] = []
    looked_at: Set[str] = set()
    waiting = [path]
    while waiting:
        current = waiting.pop()
        if current in looked_at or current in OF_CUDA:
            continue
        looked_at.add(current)
        found, seen = include_faults(current, read(current) or "", folder_of(path))
        faults += found
        waiting += seen
    return faults


def word_faults(path: str, text: str) -> List[Fault]:
    if not path.endswith(CPP_SUFFIXES) or path in OF_CUDA:
        return []
    faults: List[Fault] = []
    for number, line in code_lines(text):
        match = INCLUDE.match(line)
        if match and CUDA_HEADER.match(match.group(2)):
            faults.append(("kernel-word", path, number, f"{match.group(2)}: only {', '.join(sorted(OF_CUDA))} speak CUDA"))
        if TWO_FACES.search(line):
            faults.append(("kernel-word", path, number, "what the tests run would be other code than what a GPU runs"))
        word = CUDA_WORD.search(line) if path.endswith(".cu") else None
        if word:
            faults.append(("kernel-word", path, number, f"{word.group(0)} is CUDA's: device.h has a word of its own"))
    return faults


def faults_of(texts: Dict[str, str]) -> List[Fault]:
    """Of all files, given by path."""
    faults: Set[Fault] = set()  # Several kernels see one header.
    for path, text in texts.items():
        faults.update(word_faults(path, text))
        if path.endswith(".cu") and path not in OF_CUDA:
            faults.update(kernel_faults(path, texts.get))
    return sorted(faults)
