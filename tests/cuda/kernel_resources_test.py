#!/usr/bin/env python3
"""Self-test of kernel_resources.py, on reports as ptxas writes them. usage: kernel_resources_test.py [NVCC HOST_COMPILER]"""

import pathlib
import subprocess
import sys
import tempfile
import unittest

import kernel_resources
from kernel_resources import Recorded, Resources

NVCC = sys.argv[1:3]
del sys.argv[1:3]

KERNEL = "_ZN4c3po4NormE4Args"
REPORT = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{kernel}' for '{target}'
ptxas info    : Function properties for {kernel}
    {stack} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers, 360 bytes cmem[0]
ptxas info    : Compile time = 2.223 ms
"""


def report(registers=40, stack=0, stores=0, loads=0, kernel=KERNEL, targets=kernel_resources.TARGETS) -> str:
    return "".join(REPORT.format(kernel=kernel, target=target, registers=registers, stack=stack, stores=stores, loads=loads)
                   for target in targets)


class KernelResourcesTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def found(self, text: str) -> dict:
        (self.folder / "a.cu.ptxas").write_text(text)
        return kernel_resources.read_reports(self.folder, ["a.cu"])

    def check(self, now: str, before: str, reason="", compiler="13.0.88") -> list:
        """What is said of the report `now` against a list made of the report `before`."""
        listed = kernel_resources.write_list("13.0.88", self.found(before), {})
        if reason:
            listed = "".join(line + (f"  # {reason}" if line.startswith("sm_") else "") + "\n" for line in listed.splitlines())
        return kernel_resources.faults(self.found(now), compiler, *kernel_resources.read_list(listed))

    def test_a_report_is_read(self):
        found = self.found(report(40, 8, 16, 24) + report(32, kernel="_ZN4c3po4RopeE4Args"))
        self.assertEqual(len(found), 6)
        self.assertEqual(found[("a.cu", "sm_90", "c3po::Norm(Args)")], Resources(40, 8, 16, 24))
        self.assertEqual(found[("a.cu", "sm_100", "c3po::Rope(Args)")], Resources(32, 0, 0, 0))

    def test_functions_out_of_line_count_for_their_kernel(self):
        called = "ptxas info    : Function properties for _Z4Calli\n    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads\n"
        text = report(stack=8).replace("ptxas info    : Used", called + "ptxas info    : Used")
        self.assertEqual(set(self.found(text).values()), {Resources(40, 24, 4, 8)})

    def test_the_hash_of_an_anonymous_namespace_is_not_recorded(self):
        names = [f"_ZN4c3po{len(name)}{name}4NormE4Args" for name in ("_GLOBAL__N__ba3ab1ab_4_a_cu_44ce4cda", "_GLOBAL__N__00000000_4_a_cu_1")]
        one, other = (set(self.found(report(kernel=name))) for name in names)
        self.assertEqual(one, other)
        self.assertIn(("a.cu", "sm_80", "c3po::(anonymous namespace)::Norm(Args)"), one)

    def test_what_is_recorded_passes_and_less_does_too(self):
        self.assertEqual(self.check(report(), report()), [])
        self.assertEqual(self.check(report(32), report(40)), [])
        self.assertEqual(self.check(report(stores=4), report(stores=8), reason="the accumulators of 64 rows"), [])

    def test_a_kernel_that_begins_to_spill_is_named(self):
        for fault, words in ((report(stack=8), "8 bytes of stack"), (report(stores=4), "4 bytes of spill stores"),
                             (report(loads=4), "4 bytes of spill loads"), (report(41), "takes 41 registers, 40 are recorded")):
            said = self.check(fault, report())
            self.assertEqual(len(said), 3)
            for target, line in zip(kernel_resources.TARGETS, said):
                self.assertIn(words, line)
                self.assertIn(f"a.cu: {target} c3po::Norm(Args)", line)

    def test_registers_are_those_of_one_compiler_and_spills_of_every(self):
        self.assertEqual(self.check(report(99), report(), compiler="12.9.41"), [])
        self.assertEqual(len(self.check(report(99, stores=4), report(), compiler="12.9.41")), 3)

    def test_spilling_takes_a_reason(self):
        self.assertIn("does not say why", self.check(report(stores=4), report(stores=4))[0])
        self.assertEqual(self.check(report(stores=4), report(stores=4), reason="cold path"), [])

    def test_new_kernels_lost_ones_and_lost_targets_are_told(self):
        other = report(kernel="_ZN4c3po4RopeE4Args")
        self.assertEqual(["is not in the list" in line for line in self.check(report() + other, report())], [True] * 3)
        self.assertEqual(["no longer compiled" in line for line in self.check(report(), report() + other)], [True] * 3)
        self.assertTrue(any("is not compiled for sm_100" in line for line in self.check(report(targets=("sm_80", "sm_90")), report())))

    def test_an_update_keeps_reasons_where_they_are_still_needed(self):
        key = ("a.cu", "sm_80", "c3po::Norm(Args)")
        before = {key: Recorded(Resources(40, 0, 4, 4), "cold path")}
        written = kernel_resources.read_list(kernel_resources.write_list("13.0.88", self.found(report(48, stores=2)), before))[1]
        self.assertEqual(written[key], Recorded(Resources(48, 0, 2, 0), "cold path"))
        written = kernel_resources.read_list(kernel_resources.write_list("13.0.88", self.found(report()), before))[1]
        self.assertEqual(written[key], Recorded(Resources(40, 0, 0, 0), ""))

    def test_a_line_that_is_none_is_refused(self):
        with self.assertRaisesRegex(ValueError, "line 2"):
            kernel_resources.read_list("compiler 13.0.88\nsm_80 forty\n")

    @unittest.skipUnless(NVCC, "no nvcc")
    def test_what_this_compiler_says_of_a_spilling_kernel_is_read(self):
        (self.folder / "a.cu").write_text("__global__ void Sum(const float* in, float* out) {\n"
                                          "  float v[64];\n  for (int i = 0; i < 64; ++i) v[i] = in[i * 32 + threadIdx.x];\n"
                                          "  __syncthreads();\n  float sum = 0;\n"
                                          "  for (int i = 63; i >= 0; --i) sum = sum * v[i] + v[63 - i];\n  out[threadIdx.x] = sum;\n}\n")
        wrapper = pathlib.Path(__file__).resolve().parents[2] / "deploy" / "cmake" / "nvcc.sh"
        for limit, spills in ((255, False), (24, True)):
            command = [wrapper, self.folder / "a.cu.ptxas", NVCC[0], "-ccbin", NVCC[1], "-O3", "-arch=sm_90", "-Xptxas", "-v", "-c",
                       f"-maxrregcount={limit}", self.folder / "a.cu", "-o", self.folder / "a.o"]
            done = subprocess.run(command, capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))
            (resources,) = kernel_resources.read_reports(self.folder, ["a.cu"]).values()
            self.assertGreater(resources.registers, 10)
            self.assertEqual(resources.spill_stores > 0 and resources.spill_loads > 0, spills, resources)

    @unittest.skipUnless(NVCC, "no nvcc")
    def test_the_compilers_errors_are_not_kept_back(self):
        (self.folder / "a.cu").write_text("__global__ void Wrong() { undeclared(); }\n")
        wrapper = pathlib.Path(__file__).resolve().parents[2] / "deploy" / "cmake" / "nvcc.sh"
        done = subprocess.run([wrapper, self.folder / "report", NVCC[0], "-ccbin", NVCC[1], "-Xptxas", "-v", "-c", self.folder / "a.cu", "-o",
                               self.folder / "a.o"], capture_output=True, text=True)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("undeclared", done.stderr + done.stdout)


if __name__ == "__main__":
    unittest.main()
