#!/usr/bin/env python3
"""Checks lock annotations: clang's -Wthread-safety, as errors, over the files of index/ and server/ that see no libtorch.

    deploy/thread_safety.py [--build-dir build/release] [--jobs N] [PATH_PREFIX...]

Compiles nothing: clang reads each file with the flags of compile_commands.json, which `cmake --preset release` writes; headers
of protobuf must have been generated (build the target c3po_proto). Needs clang++-14, which deploy/fuzz.sh installs. Exits 1 if a
file has findings, 2 if nothing could be checked.
"""

import argparse
import concurrent.futures
import json
import os
import shlex
import subprocess
import sys
from typing import List, Tuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PREFIXES = ("index/", "server/")
CLANG = "clang++-14"
WARNINGS = ["-Wno-everything", "-Wthread-safety", "-Werror"]
DROPPED = ("-W", "-O", "-g", "-fsanitize", "-Winvalid-pch")


def clang_command(entry: dict) -> List[str]:
    """The compiler's command with clang in its place and neither output, warnings of its own nor precompiled header."""
    words = shlex.split(entry["command"])
    while words and not os.path.basename(words[0]).startswith(("c++", "g++", "clang++")):
        words.pop(0)  # cmake -E env VARIABLE=..., ccache
    kept, skip = [], False
    for word in words[1:]:
        if skip:
            skip = False
        elif word in ("-o", "-include", "-c"):
            skip = word != "-c"
        elif not word.startswith(DROPPED):
            kept.append(word)
    return [CLANG, "-fsyntax-only", *kept, *WARNINGS]


def check(entry: dict) -> Tuple[str, str]:
    path = os.path.relpath(entry["file"], ROOT)
    result = subprocess.run(clang_command(entry), cwd=entry["directory"], capture_output=True, text=True)
    return path, "" if result.returncode == 0 else result.stderr


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build-dir", default=os.path.join(ROOT, "build", "release"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("prefixes", nargs="*", default=list(PREFIXES), metavar="PATH_PREFIX")
    arguments = parser.parse_args()
    with open(os.path.join(arguments.build_dir, "compile_commands.json"), encoding="utf-8") as file:
        entries = {entry["file"]: entry for entry in json.load(file)}  # A file of two targets is read once.
    chosen = [entry for path, entry in sorted(entries.items())
              if os.path.relpath(path, ROOT).startswith(tuple(arguments.prefixes)) and "/torch/include" not in entry["command"]]
    if not chosen:
        print("nothing to check", file=sys.stderr)
        return 2
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for path, findings in pool.map(check, chosen):
            if findings:
                failed += 1
                print(f"{path}:\n{findings}", flush=True)
    print(f"{len(chosen)} files, {failed} with findings")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
