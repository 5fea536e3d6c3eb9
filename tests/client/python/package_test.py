"""The package client/python, built as pip builds it: from a clone, from its source distribution, and from a copy that lacks the
.proto files, which has to fail at once and say why. What it depends on is there, and it runs in an environment of its own."""

import email
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import unittest
import zipfile

import installed_client

STEMS = ("generation", "options", "reference", "server")
STUBS = {f"c3po/v1/{stem}_{kind}" for stem in STEMS for kind in ("pb2.py", "pb2.pyi", "pb2_grpc.py")}
TYPED = {"c3po/v1/py.typed", "c3po_client/py.typed"}
IMPORTED = """
import importlib.metadata, c3po_client, c3po_lm_eval, sys
from c3po.v1 import generation_pb2
from google.protobuf import __version__ as protobuf
from packaging.requirements import Requirement
for text in importlib.metadata.requires("c3po-client"):
    requirement = Requirement(text)
    if requirement.marker is None:
        assert requirement.specifier.contains(importlib.metadata.version(requirement.name)), text
        assert {"<", ">="} == {each.operator for each in requirement.specifier}, text  # A range.
assert c3po_client.__file__.startswith(sys.prefix) and generation_pb2.__file__.startswith(sys.prefix)
assert importlib.metadata.version("c3po-client") == c3po_client.__version__
print("imported", sorted(Requirement(text).name for text in importlib.metadata.requires("c3po-client")))
"""


def setup(folder, *arguments):
    return subprocess.run([sys.executable, "setup.py", "-q", *arguments], cwd=folder, capture_output=True, text=True)


class PackageTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="c3po_package_")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def assert_is_whole(self, wheel):
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
            self.assertLessEqual(STUBS | TYPED | {"c3po_client/client.py", "c3po_lm_eval/model.py"}, names)
            self.assertFalse([name for name in names if name.startswith(("examples", "make_stubs", "setup"))])
            (metadata,) = (name for name in names if name.endswith("/METADATA"))
            fields = email.message_from_bytes(archive.read(metadata))
            self.assertIn("lm-eval", fields.get_all("Provides-Extra"))

    def test_a_wheel_from_a_clone_runs_in_an_environment_of_its_own(self):
        python = installed_client.fresh_environment(self.folder)
        (wheel,) = (self.folder / "wheels").glob("*.whl")
        self.assert_is_whole(wheel)
        done = subprocess.run([python, "-I", "-c", IMPORTED], capture_output=True, text=True)
        self.assertEqual(done.stdout, "imported ['googleapis-common-protos', 'grpcio', 'lm-eval', 'protobuf']\n", done.stderr)

    def test_a_source_distribution_stands_by_itself(self):
        clone = installed_client.copy_clone(self.folder / "clone")
        done = setup(clone, "sdist", "--dist-dir", str(self.folder / "sdists"))
        self.assertEqual(done.returncode, 0, done.stderr)
        (archive,) = (self.folder / "sdists").glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(self.folder / "unpacked", filter="data")
        (unpacked,) = (self.folder / "unpacked").iterdir()
        done = setup(unpacked, "bdist_wheel", "--dist-dir", str(self.folder / "wheels"))
        self.assertEqual(done.returncode, 0, done.stderr)
        (wheel,) = (self.folder / "wheels").glob("*.whl")
        self.assert_is_whole(wheel)

    def test_a_copy_without_the_protos_fails_at_once_and_says_why(self):
        alone = self.folder / "alone"
        shutil.copytree(installed_client.SOURCE / "client" / "python", alone, ignore=installed_client.IGNORED)
        for command in (["build"], ["bdist_wheel"], ["sdist"]):
            with self.subTest(command=command):
                done = setup(alone, *command)
                self.assertNotEqual(done.returncode, 0)
                self.assertIn("no c3po/v1/*.proto in", done.stderr)
                self.assertIn("install from a clone of the repository", done.stderr)

    def test_stubs_are_written_by_one_command(self):
        command = [sys.executable, installed_client.SOURCE / "client" / "python" / "make_stubs.py", self.folder / "stubs"]
        self.assertEqual(subprocess.run(command, capture_output=True).returncode, 0)
        written = {path.relative_to(self.folder / "stubs").as_posix() for path in (self.folder / "stubs").rglob("*") if path.is_file()}
        self.assertLessEqual(STUBS, written)


if __name__ == "__main__":
    unittest.main()
