#!/usr/bin/env python3
"""Compiles proto/c3po/v1/*.proto to Python modules with types, `c3po/v1/*_pb2.py`, `*_pb2.pyi` and `*_pb2_grpc.py`.

The build of the wheel does it (setup.py), and tests and scripts of the clone, which use the package without installing it.
For stubs of one's own, without the package:

    pip install grpcio-tools googleapis-common-protos
    python client/python/make_stubs.py OUT
"""

import argparse
import atexit
import pathlib
import shutil
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
PROTO_FOLDERS = (HERE / "proto", HERE.parents[1] / "proto")  # A source distribution carries its own; else the clone's.


def proto_folder() -> pathlib.Path:
    """FileNotFoundError: the .proto files lie at none of the places."""
    for folder in PROTO_FOLDERS:
        if (folder / "c3po" / "v1").is_dir():
            return folder
    raise FileNotFoundError(f"c3po-client: no c3po/v1/*.proto in {PROTO_FOLDERS[0]} nor in {PROTO_FOLDERS[1]}: install from a clone of "
                            "the repository (pip install ./client/python), or copy its proto folder to the former place")


def make_stubs(target: pathlib.Path) -> None:
    """Writes the modules below `target`, which is made where it is missing. RuntimeError: the .proto files do not compile."""
    import grpc_tools
    from google.api import annotations_pb2
    from grpc_tools import protoc

    protos = proto_folder()
    target.mkdir(parents=True, exist_ok=True)
    googleapis = pathlib.Path(annotations_pb2.__file__).parents[2]
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"  # google/protobuf, which google/api needs.
    includes = [f"-I{folder}" for folder in (protos, googleapis, well_known)]
    outputs = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")]
    names = sorted(path.relative_to(protos).as_posix() for path in (protos / "c3po" / "v1").glob("*.proto"))
    if protoc.main(["protoc", *includes, *outputs, *names]) != 0:
        raise RuntimeError(f"c3po-client: the .proto files in {protos} do not compile")
    (target / "c3po" / "v1" / "py.typed").touch()


def import_path() -> list[str]:
    """Folders for sys.path with which the clone's own packages can be imported: stubs made anew in a temporary folder, which is
    removed when the program ends, and this folder."""
    folder = tempfile.mkdtemp(prefix="c3po_stubs_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    make_stubs(pathlib.Path(folder))
    return [folder, str(HERE)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=pathlib.Path, help="folder to write to")
    try:
        make_stubs(parser.parse_args().out)
    except (ImportError, OSError, RuntimeError) as error:
        print(f"make_stubs.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
