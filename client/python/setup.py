"""Everything else is in pyproject.toml. The stubs are made by the build and never committed. The .proto files lie outside of this
folder: a source distribution carries them along. Without them nothing could work, so the build fails and says so."""

import importlib.metadata
import pathlib
import re
import shutil
import sys
import tempfile

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import make_stubs

GENCODE_VERSION = re.compile(r"^# Protobuf Python Version: (\S+)$", re.MULTILINE)


class BuildWithStubs(build_py):
    def run(self):
        super().run()
        make_stubs.make_stubs(pathlib.Path(self.build_lib))


class SdistWithProtos(sdist):
    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        protos = make_stubs.proto_folder()
        for path in sorted((protos / "c3po" / "v1").glob("*.proto")):
            target = pathlib.Path(base_dir) / "proto" / path.relative_to(protos)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def dependencies() -> list[str]:
    """Generated modules run with the protobuf and grpcio that they were generated for, and with later ones."""
    with tempfile.TemporaryDirectory() as folder:
        make_stubs.make_stubs(pathlib.Path(folder))
        protobuf = GENCODE_VERSION.search((pathlib.Path(folder) / "c3po" / "v1" / "options_pb2.py").read_text(encoding="utf-8"))
    if protobuf is None:
        raise SystemExit("c3po-client: grpcio-tools does not say what version of protobuf its modules need")
    grpcio = importlib.metadata.version("grpcio-tools")
    return [f"grpcio>={grpcio},<2", f"protobuf>={protobuf[1]},<8", "googleapis-common-protos>=1.63,<2"]


try:
    make_stubs.proto_folder()
except FileNotFoundError as error:
    raise SystemExit(str(error)) from error
setup(cmdclass={"build_py": BuildWithStubs, "sdist": SdistWithProtos}, install_requires=dependencies())
