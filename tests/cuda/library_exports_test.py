#!/usr/bin/env python3
"""libc3po_cuda.so exports the functions of deploy/cmake/c3po_cuda.map and no more, and needs nothing beside the C and C++ runtime.
usage: library_exports_test.py LIBC3PO_CUDA"""

import pathlib
import re
import subprocess
import sys
import unittest

LIBRARY = sys.argv.pop(1)
MAP = pathlib.Path(__file__).resolve().parents[2] / "deploy" / "cmake" / "c3po_cuda.map"


def told(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class LibraryExportsTest(unittest.TestCase):
    def test_only_the_listed_functions_are_exported(self):
        listed = set(re.findall(r"\bc3po_\w+", MAP.read_text().partition("global:")[2].partition("local:")[0]))
        exported = {line.split()[-1] for line in told("nm", "-D", "--defined-only", LIBRARY).splitlines()}
        self.assertIn("c3po_cuda_runtime", exported)
        self.assertLessEqual(exported, listed)

    def test_nothing_of_others_is_needed(self):
        needed = set(re.findall(r"Shared library: \[([^\]]+)\]", told("readelf", "-d", LIBRARY)))
        own = re.compile(r"(lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+)|ld-linux-x86-64)\.so\.\d+")
        self.assertEqual([name for name in needed if not own.fullmatch(name)], [])
        self.assertNotRegex(told("readelf", "-d", LIBRARY), "RPATH|RUNPATH")


if __name__ == "__main__":
    unittest.main()
