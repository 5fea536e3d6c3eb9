"""Everything else is in pyproject.toml. The .proto files lie outside of this folder: a build fetches them from the repository,
and a source distribution carries them along. Without them nothing could work, so the build fails and says so."""

import pathlib
import shutil

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = pathlib.Path(__file__).resolve().parent
IN_PACKAGE = pathlib.Path("c3po_lm_eval") / "proto"  # Where stubs.py looks.


def proto_dir() -> pathlib.Path:
    for folder in (HERE / IN_PACKAGE, HERE.parents[1] / "proto"):
        if (folder / "c3po" / "v1").is_dir():
            return folder
    raise SystemExit(f"c3po-lm-eval: no c3po/v1/*.proto in {HERE / IN_PACKAGE} nor in {HERE.parents[1] / 'proto'}: install from a "
                     "clone of the repository (pip install ./client/python), or copy its proto folder to the former place")


def copy_protos(root: pathlib.Path) -> None:
    protos = proto_dir()
    for path in sorted((protos / "c3po" / "v1").glob("*.proto")):
        target = root / IN_PACKAGE / path.relative_to(protos)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


class BuildWithProtos(build_py):
    def run(self):
        super().run()
        copy_protos(pathlib.Path(self.build_lib))


class SdistWithProtos(sdist):
    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        copy_protos(pathlib.Path(base_dir))


proto_dir()
setup(cmdclass={"build_py": BuildWithProtos, "sdist": SdistWithProtos})
