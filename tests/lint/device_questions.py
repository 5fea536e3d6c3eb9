"""Where a tensor lies is the affair of the backends and of device.cc. Outside server/compute/ nobody names a device either: who computes
beside the model has a queue of its backend (Backend::NewQueue). Only the standard library is used."""

import re
from typing import List, Tuple

ASKING = ("server/compute/aten/", "server/compute/cpu/", "server/compute/device.")
NAMING = ("server/compute/", "server/types/device_name.h")
QUESTION = re.compile(r"\b(is_cuda|is_cpu|OnCpuKernels)\b")
# A device of libtorch's, one of kDeviceNames picked out of them, or a comparison with a device's word.
NAME = re.compile(r"\b(?:at|c10)::(?:Device|kCPU|kCUDA)\b|\bk(?:Cpu|Cuda)Device\b|\bOpen(?:Device|Queue)\(|\bdevice *[=!]= *\"")
CPP_SUFFIXES = (".h", ".cc", ".cu", ".cuh")

Fault = Tuple[int, str]  # Line, message.


def _lines_with(pattern: "re.Pattern[str]", text: str, message: str) -> List[Fault]:
    return [(number, message) for number, line in enumerate(text.splitlines(), 1) if pattern.search(line.split("//")[0])]


def question_faults(path: str, text: str) -> List[Fault]:
    if not path.startswith("server/") or not path.endswith(CPP_SUFFIXES) or path.startswith(ASKING):
        return []
    return _lines_with(QUESTION, text, "only a backend and device.cc ask where a tensor lies")


def name_faults(path: str, text: str) -> List[Fault]:
    if not path.startswith("server/") or not path.endswith(CPP_SUFFIXES) or path.startswith(NAMING):
        return []
    return _lines_with(NAME, text, "only compute/ names a device; others have Backend::NewQueue and BackendInfo")
