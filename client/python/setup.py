"""Everything else is in pyproject.toml. The .proto files lie outside of this folder, so that a build has to fetch them."""

import pathlib
import shutil

from setuptools import setup
from setuptools.command.build_py import build_py

PROTO_DIR = pathlib.Path(__file__).resolve().parents[2] / "proto"


class BuildWithProtos(build_py):
    def run(self):
        super().run()
        for path in sorted((PROTO_DIR / "c3po" / "v1").glob("*.proto")):
            target = pathlib.Path(self.build_lib) / "c3po_lm_eval" / "proto" / path.relative_to(PROTO_DIR)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


setup(cmdclass={"build_py": BuildWithProtos})
