#!/usr/bin/env python3
"""check.sh without a GPU: what it packs stands alone and is small, and a run tells a failed step, a skipped one and a missing GPU.
usage: check_test.py BIN_DIR"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

BIN_DIR = pathlib.Path(sys.argv.pop(1))
CHECK = pathlib.Path(__file__).resolve().parent / "check.sh"
GLIBC = re.compile(r"(ld-linux.*|lib(c|m|dl|rt|pthread|util|resolv|mvec))\.so|linux-vdso")


class CheckTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name) / "packed"

    def call(self, *command, **settings):
        return subprocess.run(command, capture_output=True, text=True, env={"PATH": os.environ["PATH"], **settings}, timeout=300)

    def made(self, **programs: str):
        """A folder as pack makes it, of programs that are shell scripts."""
        (self.folder / "bin").mkdir(parents=True)
        shutil.copy(CHECK, self.folder)
        for name, script in programs.items():
            path = self.folder / "bin" / name
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)

    def test_what_is_packed_stands_alone_and_is_small(self):
        packed = self.call(CHECK, "pack", self.folder, BIN_DIR=str(BIN_DIR))
        self.assertEqual(packed.returncode, 0, packed.stderr)
        size = sum(path.stat().st_size for path in self.folder.rglob("*"))
        self.assertLess(size, 64 << 20)
        self.assertTrue((self.folder / "bin" / "libc3po_cuda.so").exists())
        for program in (self.folder / "bin").iterdir():
            loaded = dict(re.findall(r"(\S+) => (\S+)", self.call("ldd", program).stdout))
            self.assertNotIn("not", loaded.values())
            if program.suffix != ".so":
                self.assertTrue(loaded, program)
                outside = {name for name, path in loaded.items()
                           if not GLIBC.match(name) and pathlib.Path(path).resolve().parent != (self.folder / "lib").resolve()}
                self.assertEqual(outside, set(), program)
        again = self.call(CHECK, "pack", self.folder, BIN_DIR=str(BIN_DIR))
        self.assertEqual(again.returncode, 0, again.stderr)

    def test_a_folder_of_others_is_not_emptied(self):
        self.folder.mkdir()
        (self.folder / "thesis").write_text("x")
        packed = self.call(CHECK, "pack", self.folder, BIN_DIR=str(BIN_DIR))
        self.assertEqual(packed.returncode, 1)
        self.assertIn("was not packed by this script", packed.stderr)
        self.assertTrue((self.folder / "thesis").exists())

    def test_a_program_that_is_not_built_is_named(self):
        packed = self.call(CHECK, "pack", self.folder, BIN_DIR="/nowhere")
        self.assertEqual(packed.returncode, 1)
        self.assertIn("/nowhere/gpu_probe is not there", packed.stderr)

    def test_the_plan_names_each_step_with_its_time_the_layouts_of_fragments_first(self):
        plan = self.call(CHECK, "--plan")
        self.assertEqual(plan.returncode, 0, plan.stderr)
        *steps, whole = [re.fullmatch(r"(\w+) +(\d+) s  (\w.*)", line) for line in plan.stdout.splitlines()]
        self.assertEqual([step[1] for step in steps], ["fragments", "probe", "runtime", "primitives", "products", "attention", "index", "marks",
                                                       "memcheck", "racecheck"])
        self.assertEqual(whole[1], "all")
        self.assertLess(int(whole[2]), 240)
        self.assertEqual([step[1] for step in steps if int(step[2]) >= int(whole[2])], [])

    def test_every_step_of_the_plan_runs_a_program_that_is_packed(self):
        programs = re.search(r"^PROGRAMS=\((.*)\)", CHECK.read_text(), re.M)[1].split()
        self.made(**{name: f"echo ran {name}" for name in programs})
        sanitizer = self.folder / "sanitizer"
        sanitizer.mkdir()
        (sanitizer / "compute-sanitizer").write_text("#!/bin/sh\nwhile [ \"${1#/}\" = \"$1\" ]; do shift; done\nexec \"$@\"\n")
        (sanitizer / "compute-sanitizer").chmod(0o755)
        ended = self.call(self.folder / "check.sh", PATH=f"{sanitizer}:{os.environ['PATH']}")
        # Its second run is asked for figures, which a script has none of.
        self.assertIn("== probe: FAILED with 1", ended.stdout)
        passed = re.findall(r"== (\w+): passed", ended.stdout)
        self.assertEqual(passed, ["fragments", "runtime", "primitives", "products", "attention", "index", "marks", "memcheck", "racecheck"],
                         ended.stdout + ended.stderr)
        self.assertEqual(set(re.findall(r"ran (\w+)", ended.stdout)), set(programs))

    def test_filters_name_tests_that_there_are(self):
        """Else a step passes with no test."""
        text = CHECK.read_text()
        filters = re.findall(r'"\$HERE/bin/(\w+)" --gtest_brief=1 \\\n +--gtest_filter=\'(\S+)\'', text)
        filters.append(("gpu_primitives_test", re.search(r"^FRAGMENTS='(.*)'", text, re.M)[1]))
        self.assertEqual(len(filters), 4)
        for program, names in filters:
            for name in names.lstrip("-").split(":"):
                listed = self.call(BIN_DIR / program, "--gtest_list_tests", f"--gtest_filter={name}").stdout
                self.assertRegex(listed, r"(?m)^  \w", f"{program} {name}")

    def test_without_a_gpu_no_step_is_taken(self):
        self.made(gpu_probe="echo device cuda: none here >&2; exit 1", gpu_runtime_test="exit 0")
        ended = self.call(self.folder / "check.sh")
        self.assertEqual((ended.returncode, ended.stdout, ended.stderr), (3, "", "device cuda: none here\n"))

    def test_a_step_passes_fails_or_finds_its_tests_skipped(self):
        for script, code, words in (("echo '[  PASSED  ] 12 tests.'", 0, "== runtime: passed"), ("exit 4", 1, "== runtime: FAILED with 4"),
                                    ("echo '[  SKIPPED ] 12 tests.'", 1, "== runtime: FAILED with skipped tests"),
                                    ("echo 'device cuda: no driver'; echo '[  PASSED  ] 0 tests.'", 1, "== runtime: FAILED with skipped tests")):
            with self.subTest(script=script):
                shutil.rmtree(self.folder, ignore_errors=True)
                self.made(gpu_probe="exit 0", gpu_runtime_test=script)
                ended = self.call(self.folder / "check.sh", "runtime", REPORT=str(self.folder / "elsewhere"))
                self.assertEqual(ended.returncode, code, ended.stdout + ended.stderr)
                self.assertIn(words, ended.stdout)
                self.assertTrue((self.folder / "elsewhere" / "runtime.log").exists())

    def test_a_step_that_the_machine_cannot_take_is_left_out(self):
        self.made(gpu_probe="exit 0", gpu_runtime_test="exit 0")
        if shutil.which("compute-sanitizer", path=os.environ["PATH"] + ":/usr/local/cuda/bin"):
            self.skipTest("there is a compute-sanitizer")
        ended = self.call(self.folder / "check.sh", "memcheck")
        self.assertEqual((ended.returncode, ended.stdout.splitlines()[-1]), (0, "== memcheck: left out"))

    def test_a_step_that_takes_too_long_fails_and_so_do_those_without_time(self):
        self.made(gpu_probe="exit 0", gpu_runtime_test="sleep 20", gpu_products_test="exit 0")
        ended = self.call(self.folder / "check.sh", "runtime", "products", SECONDS_ALL="2")
        self.assertEqual(ended.returncode, 1)
        self.assertRegex(ended.stdout, "== runtime: FAILED: not done in [12] s")
        self.assertIn("== products: FAILED: no time was left of 2 s", ended.stdout)

    def test_an_unknown_step_is_refused_with_those_that_there_are(self):
        self.made(gpu_probe="exit 0")
        ended = self.call(self.folder / "check.sh", "prob")
        self.assertEqual(ended.returncode, 1)
        self.assertIn("step prob is not one of fragments probe runtime", ended.stderr)


if __name__ == "__main__":
    unittest.main()
