"""The package client/python, built as pip builds it: from a clone, from its source distribution, and from a copy that lacks the
.proto files, which has to fail at once and say why."""

import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import unittest
import zipfile

SOURCE = pathlib.Path(__file__).resolve().parents[3]
PROTOS = {f"c3po_lm_eval/proto/c3po/v1/{name}.proto" for name in ("generation", "options", "reference", "server")}


def setup(folder, *arguments):
    return subprocess.run([sys.executable, "setup.py", "-q", *arguments], cwd=folder, capture_output=True, text=True)


class PackageTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="c3po_package_")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        ignored = shutil.ignore_patterns("build", "*.egg-info", "__pycache__", "dist")
        shutil.copytree(SOURCE / "client" / "python", self.folder / "clone" / "client" / "python", ignore=ignored)
        shutil.copytree(SOURCE / "client" / "python", self.folder / "alone", ignore=ignored)
        shutil.copytree(SOURCE / "proto", self.folder / "clone" / "proto")

    def wheel_of(self, folder):
        done = setup(folder, "bdist_wheel", "--dist-dir", str(self.folder / "wheels"))
        self.assertEqual(done.returncode, 0, done.stderr)
        (wheel,) = (self.folder / "wheels").glob("*.whl")
        return wheel

    def assert_has_protos(self, wheel):
        with zipfile.ZipFile(wheel) as archive:
            self.assertLessEqual(PROTOS, set(archive.namelist()))

    def test_a_clone_builds_a_wheel_with_the_protos(self):
        self.assert_has_protos(self.wheel_of(self.folder / "clone" / "client" / "python"))

    def test_a_source_distribution_stands_by_itself_and_its_wheel_imports(self):
        done = setup(self.folder / "clone" / "client" / "python", "sdist", "--dist-dir", str(self.folder / "sdists"))
        self.assertEqual(done.returncode, 0, done.stderr)
        (archive,) = (self.folder / "sdists").glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(self.folder / "unpacked", filter="data")
        (unpacked,) = (self.folder / "unpacked").iterdir()
        wheel = self.wheel_of(unpacked)
        self.assert_has_protos(wheel)
        with zipfile.ZipFile(wheel) as content:
            content.extractall(self.folder / "installed")
        imported = subprocess.run([sys.executable, "-c", "from c3po_lm_eval.stubs import generation_pb2; print(generation_pb2.__name__)"],
                                  cwd=self.folder / "installed", capture_output=True, text=True)
        self.assertEqual(imported.stdout, "c3po.v1.generation_pb2\n", imported.stderr)

    def test_a_copy_without_the_protos_fails_at_once_and_says_why(self):
        for command in (["build"], ["bdist_wheel"], ["sdist"]):
            with self.subTest(command=command):
                done = setup(self.folder / "alone", *command)
                self.assertNotEqual(done.returncode, 0)
                self.assertIn("no c3po/v1/*.proto in", done.stderr)
                self.assertIn("install from a clone of the repository", done.stderr)

    def test_ask_by_itself_says_what_it_lacks(self):
        done = subprocess.run([sys.executable, "ask.py", "hi"], cwd=self.folder / "alone", capture_output=True, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertIn("ask.py: no c3po/v1/*.proto in", done.stderr)


if __name__ == "__main__":
    unittest.main()
