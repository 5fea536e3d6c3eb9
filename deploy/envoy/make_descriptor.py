"""Writes what Envoy's gRPC-JSON transcoder reads: the descriptors of c3po.v1, with http_rules.yaml as their annotations.
Needs the tools of deploy/install_deps.sh.  usage: make_descriptor.py c3po.pb"""

import pathlib
import sys
import tempfile

import yaml
from google.api import annotations_pb2, http_pb2
from google.protobuf import any_pb2, descriptor_pb2, duration_pb2, json_format
from google.rpc import error_details_pb2
from grpc_tools import protoc

HERE = pathlib.Path(__file__).resolve().parent
PROTO = HERE.parents[1] / "proto"


def read_rules(path: pathlib.Path = HERE / "http_rules.yaml") -> dict[str, http_pb2.HttpRule]:
    """By the full name of the method. ValueError: one is named twice; ParseError: not a HttpRule."""
    rules: dict[str, http_pb2.HttpRule] = {}
    for entry in yaml.safe_load(path.read_text(encoding="utf-8"))["http"]["rules"]:
        rule = json_format.ParseDict(entry, http_pb2.HttpRule())
        if rule.selector in rules:
            raise ValueError(f"{path}: {rule.selector} has two rules")
        rules[rule.selector] = rule
    return rules


def compile_protos() -> descriptor_pb2.FileDescriptorSet:
    protos = sorted(str(path.relative_to(PROTO)) for path in (PROTO / "c3po").rglob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "descriptors.pb"
        if protoc.main(["protoc", f"-I{PROTO}", "--include_imports", f"--descriptor_set_out={output}", *protos]) != 0:
            raise RuntimeError("protoc failed")
        return descriptor_pb2.FileDescriptorSet.FromString(output.read_bytes())


def annotated() -> descriptor_pb2.FileDescriptorSet:
    """ValueError: a rule names no method."""
    descriptors, rules = compile_protos(), read_rules()
    for file in descriptors.file:
        for service in file.service:
            for method in service.method:
                rule = rules.pop(f"{file.package}.{service.name}.{method.name}", None)
                if rule is not None:
                    method.options.Extensions[annotations_pb2.http].CopyFrom(rule)
                    method.options.Extensions[annotations_pb2.http].ClearField("selector")
    # What c3pod attaches to errors, so that they can be shown as JSON too.
    for module in (any_pb2, duration_pb2, error_details_pb2):
        module.DESCRIPTOR.CopyToProto(descriptors.file.add())
    if rules:
        raise ValueError(f"http_rules.yaml: no such method: {', '.join(sorted(rules))}")
    return descriptors


if __name__ == "__main__":
    pathlib.Path(sys.argv[1]).write_bytes(annotated().SerializeToString())
