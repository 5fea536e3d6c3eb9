"""The generated modules of protocols that others define, from the same .proto files that c3pod was built with."""

import atexit
import importlib
import pathlib
import shutil
import sys
import tempfile

from grpc_tools import protoc

import server_process


def make_stubs(folder: str, *protos: str) -> dict:
    """By name, of the files in a folder of the newest foreign-protos: make_stubs("vllm", "vllm_engine.proto", "common.proto")."""
    found = sorted(server_process.cache_folder().glob("foreign-protos-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
    source = found[-1] / folder
    target = tempfile.mkdtemp(prefix=f"c3po_{folder}_")
    atexit.register(shutil.rmtree, target, ignore_errors=True)
    descriptors = source / "descriptors.pb"
    where = f"--descriptor_set_in={descriptors}" if descriptors.exists() else f"-I{source}"
    code = protoc.main(["protoc", where, f"--python_out={target}", f"--grpc_python_out={target}", *protos])
    if code != 0:
        raise RuntimeError("protoc failed")
    sys.path.insert(0, target)
    names = [pathlib.Path(proto).stem + suffix for proto in protos for suffix in ("_pb2", "_pb2_grpc")]
    return {name: importlib.import_module(name) for name in names}
