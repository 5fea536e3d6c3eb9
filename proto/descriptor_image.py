#!/usr/bin/env python3
"""Compiles c3po.v1 into one file of descriptors, which buf reads: descriptor_image.py OUT [--proto FOLDER] [--source-info]
With --source-info comments and line numbers are in it, which lint needs and a released image does not. Needs grpcio-tools and
googleapis-common-protos.
"""

import argparse
import pathlib
import sys

import grpc_tools
from google.api import annotations_pb2
from grpc_tools import protoc

HERE = pathlib.Path(__file__).resolve().parent


def make_image(target: pathlib.Path, protos: pathlib.Path = HERE, source_info: bool = False) -> None:
    """RuntimeError: the files do not compile; protoc has said why."""
    includes = [protos, pathlib.Path(annotations_pb2.__file__).parents[2], pathlib.Path(grpc_tools.__file__).parent / "_proto"]
    names = sorted(path.relative_to(protos).as_posix() for path in (protos / "c3po").rglob("*.proto"))
    flags = ["--include_imports", *(["--include_source_info"] if source_info else []), f"--descriptor_set_out={target}"]
    if protoc.main(["protoc", *(f"-I{folder}" for folder in includes), *flags, *names]) != 0:
        raise RuntimeError(f"the .proto files in {protos} do not compile")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--proto", type=pathlib.Path, default=HERE, help="folder of the .proto files; default: this one")
    parser.add_argument("--source-info", action="store_true")
    arguments = parser.parse_args()
    make_image(arguments.out, arguments.proto, arguments.source_info)
    return 0


if __name__ == "__main__":
    sys.exit(main())
