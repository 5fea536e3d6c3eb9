#!/usr/bin/env python3
"""Tests of mutate.py: an edit that does not match exactly once makes no mutant, and a mutant that nobody notices fails."""

import os
import stat
import subprocess
import sys
import tempfile
import unittest

MUTATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "mutate.py")
SOURCE = "a();\nSyncBlock();\nb();\nSyncBlock();\n"


class MutateTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def write(self, name, text):
        path = os.path.join(self.folder.name, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def run_mutate(self, *arguments):
        return subprocess.run([sys.executable, MUTATE, *arguments], capture_output=True, text=True, check=False)

    def make(self, mutants, name="m"):
        output = os.path.join(self.folder.name, "out.cu")
        result = self.run_mutate("make", self.write("in.cu", SOURCE), self.write("m.toml", mutants), name, output)
        if result.returncode != 0:
            self.assertFalse(os.path.exists(output))
            return result.stderr
        with open(output, encoding="utf-8") as file:
            return file.read().split("\n", 1)[1]

    def check(self, body):
        test = self.write("test", "#!/bin/sh\n" + body)
        os.chmod(test, stat.S_IRWXU)
        return self.run_mutate("check", test, self.write("m.toml", "[m]\nfind='a'\nreplace='b'\ntest='T.*'\n"), "m")

    def test_one_edit_is_made(self):
        self.assertEqual(self.make("[m]\nfind = '''b();\nSyncBlock();'''\nreplace = 'b();'\ntest = '*'\n"), "a();\nSyncBlock();\nb();\n")

    def test_text_that_is_not_there_exactly_once_is_refused(self):
        self.assertIn("2 times", self.make("[m]\nfind = 'SyncBlock();'\nreplace = ''\ntest = '*'\n"))
        self.assertIn("0 times", self.make("[m]\nfind = 'SyncWarp();'\nreplace = ''\ntest = '*'\n"))

    def test_malformed_mutants_are_refused(self):
        for mutants, part in (("", "no mutants"), ("[m]\nfind='a();'\nreplace=''\n", "a mutant has"), ("[m]\nfind='a'\nreplace='a'\ntest=''\n", "nothing"),
                              ("[m]\nfind='a'\nreplace=1\ntest='*'\n", "each a text"), ("['M m']\nfind='a'\nreplace='b'\ntest='*'\n", "a-z"),
                              ("[m]\nfind='a'\nreplace='b'\ntest='*'\nheader='../a.h'\n", "no header of the repository")):
            with self.subTest(mutants):
                self.assertIn(part, self.make(mutants))

    def test_names_are_listed(self):
        path = self.write("m.toml", "".join(f"[{name}]\nfind='a'\nreplace='b'\ntest='*'\n" for name in ("one", "two")) + "header='a/b.h'\n")
        self.assertEqual(self.run_mutate("list", path).stdout, "one\ntwo:a/b.h\n")

    def test_a_mutant_is_noticed_by_a_failure_or_a_crash(self):
        self.assertEqual(self.check('echo "[ RUN      ] T.a"; exit 1\n').returncode, 0)
        crash = self.check('echo "[ RUN      ] T.a"; kill -SEGV $$\n')
        self.assertEqual(crash.returncode, 0)
        self.assertIn("SIGSEGV", crash.stdout)

    def test_a_mutant_that_nobody_notices_fails(self):
        self.assertIn("noticed", self.check('echo "[ RUN      ] T.a"; exit 0\n').stderr)
        self.assertIn("no test", self.check("exit 1\n").stderr)
        self.assertIn("no test", self.check("exit 0\n").stderr)

    def test_the_filter_is_handed_on(self):
        self.assertIn("--gtest_filter=T.*", self.check('echo "[ RUN      ] $1"; exit 1\n').stdout)


if __name__ == "__main__":
    unittest.main()
