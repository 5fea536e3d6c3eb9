#!/usr/bin/env python3
"""Compares what every kernel of libc3po_cuda.so takes of a thread's registers and local memory with what is recorded: a kernel that
begins to spill still computes the same, only slowly, and no other test can see it without a GPU.

    kernel_resources.py --build FOLDER --list FILE [--compiler TEXT] [--update] SOURCE.cu ...

FOLDER has SOURCE.cu.ptxas, what `nvcc -Xptxas -v` said (deploy/cmake/nvcc.sh). The list has a line for each kernel and target:
registers, bytes of stack, bytes of spill stores and loads, the kernel, and after # why it may spill, without which no byte of stack or
spill is allowed. Fewer than recorded is fine. Registers are compared only where the compiler is the one of the list. --update
writes the list anew and keeps the reasons; what spills without one fails until a reason stands there. Standard library only."""

import argparse
import pathlib
import re
import subprocess
import sys
from typing import Dict, List, NamedTuple, Tuple

TARGETS = ("sm_80", "sm_90", "sm_100")
ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\S+)'")
LOCAL = re.compile(r"^\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
LINE = re.compile(r"^(sm_\d+) +(\d+) +(\d+) +(\d+) +(\d+)  (.+?)(?:  # (.*))?$")
HEADER = """# What each kernel of libc3po_cuda.so takes of a thread: target, registers, bytes of stack, of spill stores, of spill loads, kernel.
# Stack and spills are 0 but where the line says why after "  # ". The build's target update_kernel_resources writes it anew.
"""

Key = Tuple[str, str, str]  # Source, target, kernel.


class Resources(NamedTuple):
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int

    def local(self) -> Tuple[int, int, int]:
        return self[1:]


class Recorded(NamedTuple):
    resources: Resources
    reason: str


def demangled(names: List[str]) -> List[str]:
    """As c++filt says them; the hash that nvcc puts into an anonymous namespace's name goes with it."""
    if not names:
        return []
    return subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout.splitlines()


def parse_report(text: str) -> Dict[Tuple[str, str], Resources]:
    """(target, mangled kernel) -> what it takes, with what functions that it calls out of line take."""
    found: Dict[Tuple[str, str], Resources] = {}
    entry, local = None, [0, 0, 0]
    for line in text.splitlines():
        if match := ENTRY.search(line):
            entry, local = (match.group(2), match.group(1)), [0, 0, 0]
        elif match := LOCAL.match(line):
            local = [total + int(number) for total, number in zip(local, match.groups())]
        elif (match := REGISTERS.search(line)) and entry:
            found[entry] = Resources(int(match.group(1)), *local)
            entry = None
    return found


def read_reports(build: pathlib.Path, sources: List[str]) -> Dict[Key, Resources]:
    found: Dict[Key, Resources] = {}
    for source in sources:
        kernels = parse_report((build / f"{source}.ptxas").read_text(encoding="utf-8"))
        for (target, _), name, resources in zip(kernels, demangled([name for _, name in kernels]), kernels.values()):
            found[(source, target, name)] = resources
    return found


def read_list(text: str) -> Tuple[str, Dict[Key, Recorded]]:
    """The compiler, and what is recorded of each kernel."""
    compiler, source = "", ""
    recorded: Dict[Key, Recorded] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("compiler "):
            compiler = line.removeprefix("compiler ").strip()
        elif line.startswith("["):
            source = line.strip("[]")
        elif line.strip() and not line.startswith("#"):
            match = LINE.match(line)
            if match is None:
                raise ValueError(f"line {number} is no kernel's: {line}")
            numbers = Resources(*(int(match.group(i)) for i in range(2, 6)))
            recorded[(source, match.group(1), match.group(6))] = Recorded(numbers, (match.group(7) or "").strip())
    return compiler, recorded


def write_list(compiler: str, found: Dict[Key, Resources], before: Dict[Key, Recorded]) -> str:
    lines = [HEADER + f"compiler {compiler}"]
    order = lambda key: (key[0], key[2], TARGETS.index(key[1]) if key[1] in TARGETS else len(TARGETS))
    source = None
    for key in sorted(found, key=order):
        if key[0] != source:
            source = key[0]
            lines.append(f"\n[{source}]")
        reason = before[key].reason if key in before and any(found[key].local()) else ""
        numbers = "{:>4} {:>4} {:>4} {:>4}".format(*found[key])
        lines.append(f"{key[1]:<6} {numbers}  {key[2]}" + (f"  # {reason}" if reason else ""))
    return "\n".join(lines) + "\n"


def faults(found: Dict[Key, Resources], compiler: str, listed_compiler: str, recorded: Dict[Key, Recorded]) -> List[str]:
    said = []
    of_kernel: Dict[Tuple[str, str], set] = {}
    for source, target, kernel in found:
        of_kernel.setdefault((source, kernel), set()).add(target)
    for (source, kernel), targets in of_kernel.items():
        said += [f"{source}: {kernel} is not compiled for {target}" for target in TARGETS if target not in targets]
    for (source, target, kernel), now in found.items():
        name = f"{source}: {target} {kernel}"
        if (source, target, kernel) not in recorded:
            said.append(f"{name} is not in the list")
            continue
        then, reason = recorded[(source, target, kernel)]
        if compiler == listed_compiler and now.registers > then.registers:
            said.append(f"{name} takes {now.registers} registers, {then.registers} are recorded")
        for what, one, other in zip(("bytes of stack", "bytes of spill stores", "bytes of spill loads"), now.local(), then.local()):
            if one > other:
                said.append(f"{name} takes {one} {what}, {other} are recorded")
        if any(then.local()) and not reason:
            said.append(f"{name} may use local memory, and the list does not say why")
    said += [f"{source}: {target} {kernel} is in the list, and no longer compiled" for source, target, kernel in recorded
             if (source, target, kernel) not in found]
    return said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--list", type=pathlib.Path, required=True)
    parser.add_argument("--compiler", default="")
    parser.add_argument("--update", action="store_true")
    parser.add_argument("sources", nargs="+")
    arguments = parser.parse_args()
    try:
        found = read_reports(arguments.build, arguments.sources)
    except FileNotFoundError as error:
        print(f"{error.filename} is not there: build target c3po_cuda", file=sys.stderr)
        return 2
    listed_compiler, recorded = read_list(arguments.list.read_text(encoding="utf-8") if arguments.list.exists() else "")
    if arguments.update:
        listed_compiler, recorded = read_list(written := write_list(arguments.compiler, found, recorded))
        arguments.list.write_text(written, encoding="utf-8")
    said = faults(found, arguments.compiler, listed_compiler, recorded)
    for fault in said:
        print(fault)
    if said:
        print("If it has to be so: cmake --build --preset release --target update_kernel_resources")
    print(f"{len(found)} kernels, compiler {arguments.compiler}, list of {listed_compiler}: {len(said)} faults")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
