"""The generated modules of c3po.v1, compiled from the .proto files when this module is imported.

The files are those that the build put beside this module, or the clone's when the package is used from there.
"""

import importlib
import pathlib
import sys
import tempfile

import grpc_tools
from google.api import annotations_pb2
from grpc_tools import protoc


STEMS = ("options", "generation", "reference", "server")


def _proto_dir() -> pathlib.Path:
    here = pathlib.Path(__file__).resolve().parent
    for folder in (here / "proto", here.parents[2] / "proto"):
        if (folder / "c3po" / "v1").is_dir():
            return folder
    raise ImportError(f"c3po_lm_eval: no c3po/v1/*.proto in {here / 'proto'}: install the package from its repository")


def _compile_and_import() -> dict:
    protos = _proto_dir()
    names = [f"c3po/v1/{name}.proto" for name in STEMS]
    googleapis = pathlib.Path(annotations_pb2.__file__).parents[2]
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"  # google/protobuf, which google/api needs.
    includes = [f"-I{folder}" for folder in (protos, googleapis, well_known)]
    with tempfile.TemporaryDirectory(prefix="c3po_stubs_") as folder:
        if protoc.main(["protoc", *includes, f"--python_out={folder}", f"--grpc_python_out={folder}", *names]) != 0:
            raise ImportError(f"c3po_lm_eval: the .proto files in {protos} do not compile")
        sys.path.insert(0, folder)
        try:
            return {
                stem + suffix: importlib.import_module(f"c3po.v1.{stem}{suffix}")
                for stem in STEMS
                for suffix in ("_pb2", "_pb2_grpc")
            }
        finally:
            sys.path.remove(folder)


_MODULES = _compile_and_import()
options_pb2 = _MODULES["options_pb2"]
generation_pb2 = _MODULES["generation_pb2"]
generation_pb2_grpc = _MODULES["generation_pb2_grpc"]
reference_pb2 = _MODULES["reference_pb2"]
reference_pb2_grpc = _MODULES["reference_pb2_grpc"]
server_pb2 = _MODULES["server_pb2"]
server_pb2_grpc = _MODULES["server_pb2_grpc"]
