"""Writes what Envoy's gRPC-JSON transcoder reads: the descriptors of c3po.v1 with the HTTP form of each call, and of the
details that errors carry.  Needs the tools of deploy/install_deps.sh.  usage: make_descriptor.py c3po.pb"""

import pathlib
import sys
import tempfile

import grpc_tools
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"
GOOGLEAPIS = pathlib.Path(annotations_pb2.__file__).parents[2]
WELL_KNOWN = pathlib.Path(grpc_tools.__file__).parent / "_proto"
# What c3pod attaches to errors, so that they can be shown as JSON too.
ERROR_DETAILS = ["google/protobuf/any.proto", "google/rpc/error_details.proto"]


def descriptors() -> descriptor_pb2.FileDescriptorSet:
    protos = sorted(str(path.relative_to(PROTO)) for path in (PROTO / "c3po").rglob("*.proto"))
    includes = [f"-I{folder}" for folder in (PROTO, GOOGLEAPIS, WELL_KNOWN)]
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "descriptors.pb"
        arguments = ["protoc", *includes, "--include_imports", f"--descriptor_set_out={output}", *protos, *ERROR_DETAILS]
        if protoc.main(arguments) != 0:
            raise RuntimeError("protoc failed")
        return descriptor_pb2.FileDescriptorSet.FromString(output.read_bytes())


if __name__ == "__main__":
    pathlib.Path(sys.argv[1]).write_bytes(descriptors().SerializeToString())
