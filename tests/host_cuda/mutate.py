#!/usr/bin/env python3
"""Makes mutants of a kernel: copies of its .cu, or of a header it includes, with one seeded fault each, which its tests have to notice.

    mutate.py list MUTANTS                        prints their names, one a line; behind a colon the header, if it is one that is changed
    mutate.py make FILE MUTANTS NAME OUTPUT       writes the copy
    mutate.py check TEST MUTANTS NAME             runs the test binary that is linked with the mutant; exit 0: it noticed

MUTANTS is a TOML file, a table for each mutant: `find` is a text that the .cu has exactly once, `replace` what comes in its place,
`test` the filter (--gtest_filter) of the tests that have to notice it, and `header` the header that has the text, if it is not the .cu,
from the root of the repository. Only the standard library is used.
"""

import re
import signal
import subprocess
import sys
import tomllib
from typing import Dict

KEYS = {"find", "replace", "test"}
OPTIONAL_KEYS = {"header"}
SECONDS_MAX = 300


class Fault(Exception):
    pass


def read_mutants(path: str) -> Dict[str, Dict[str, str]]:
    with open(path, "rb") as file:
        mutants = tomllib.load(file)
    for name, mutant in mutants.items():
        if not re.fullmatch(r"[a-z0-9_]+", name):
            raise Fault(f"{path}: {name}: a name is of a-z, 0-9 and _")
        if not isinstance(mutant, dict) or set(mutant) - OPTIONAL_KEYS != KEYS or not all(isinstance(text, str) for text in mutant.values()):
            raise Fault(f"{path}: {name}: a mutant has {', '.join(sorted(KEYS))}, each a text")
        if not re.fullmatch(r"(?:[\w/]+\.h)?", mutant.get("header", "")):
            raise Fault(f"{path}: {name}: {mutant['header']} is no header of the repository")
        if mutant["find"] == mutant["replace"]:
            raise Fault(f"{path}: {name}: it changes nothing")
    if not mutants:
        raise Fault(f"{path}: no mutants")
    return mutants


def mutated(source: str, mutant: Dict[str, str], name: str) -> str:
    count = source.count(mutant["find"])
    if count != 1:
        raise Fault(f"{name}: the file has its text {count} times, not once:\n{mutant['find']}")
    return source.replace(mutant["find"], mutant["replace"])


def make(file_path: str, mutants_path: str, name: str, output_path: str) -> None:
    with open(file_path, encoding="utf-8") as file:
        source = file.read()
    text = mutated(source, read_mutants(mutants_path)[name], f"{mutants_path}: {name}")
    with open(output_path, "w", encoding="utf-8") as file:
        file.write(f"// Made of {file_path} by mutate.py: {name}.\n{text}")


def check(test: str, mutants_path: str, name: str) -> None:
    """A failed test, a fault of the execution model and a crash all notice a mutant; a hang does not."""
    test_filter = read_mutants(mutants_path)[name]["test"]
    try:
        result = subprocess.run([test, f"--gtest_filter={test_filter}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                errors="replace", timeout=SECONDS_MAX, check=False)
    except subprocess.TimeoutExpired:
        raise Fault(f"{name}: {test_filter} did not end within {SECONDS_MAX} s") from None
    print(result.stdout[:4000])
    if "[ RUN      ]" not in result.stdout:
        raise Fault(f"{name}: {test_filter} is no test of {test}")
    if result.returncode == 0:
        raise Fault(f"{name}: no test of {test_filter} noticed it")
    if result.returncode < 0:
        print(f"noticed by {signal.Signals(-result.returncode).name}")


def main() -> int:
    shapes = {"list": 1, "make": 4, "check": 3}
    command, arguments = (sys.argv[1:2] or [""])[0], sys.argv[2:]
    if shapes.get(command) != len(arguments):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        if command == "list":
            for name, mutant in read_mutants(*arguments).items():
                print(f"{name}:{mutant['header']}" if "header" in mutant else name)
        elif command == "make":
            make(*arguments)
        else:
            check(*arguments)
    except (Fault, KeyError, OSError, tomllib.TOMLDecodeError) as fault:
        print(fault, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
