#!/usr/bin/env python3
"""Asks a c3po server over gRPC and streams the answer: grpcio and the .proto files, nothing else of this project.

The stubs are made at run time by grpcio-tools into a temporary folder; README.md shows how to keep them.
Exit codes are those of the `c3po` command (1 other, 2 usage, 3 unavailable, 4 invalid argument, ...).
"""

import argparse
import difflib
import importlib
import ipaddress
import os
import pathlib
import sys
import tempfile

import grpc
import grpc_tools
from google.api import annotations_pb2
from google.protobuf import json_format
from grpc_tools import protoc

HERE = pathlib.Path(__file__).resolve().parent
PROTO_DIRS = [HERE / "proto", HERE.parents[1] / "proto"]  # A copy beside this file, or the clone's.
PROTOS = ["options", "generation"]

METHODS = {
    "none": "METHOD_NONE",
    "mode": "METHOD_MODE_FINDING",
    "kernel": "METHOD_KERNEL_REGRESSION",
    "ngd": "METHOD_NEIGHBORHOOD_GRADIENT_DESCENT",
}

PREFIX = "C3PO_"
VARIABLES = ["CACHE_DIR", "SERVER", "TOKEN", "TLS_CA", "TLS_CERT", "TLS_KEY", "INSECURE_TOKEN"]  # Of all clients.

EXIT_CODES = {
    grpc.StatusCode.UNAVAILABLE: 3,
    grpc.StatusCode.INVALID_ARGUMENT: 4,
    grpc.StatusCode.NOT_FOUND: 5,
    grpc.StatusCode.FAILED_PRECONDITION: 6,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 7,
    grpc.StatusCode.DEADLINE_EXCEEDED: 8,
    grpc.StatusCode.CANCELLED: 9,
    grpc.StatusCode.UNAUTHENTICATED: 10,
    grpc.StatusCode.PERMISSION_DENIED: 10,
}


def import_stubs(folder):
    """Compiles the protos into `folder` and imports them: (options_pb2, generation_pb2, generation_pb2_grpc)."""
    proto_dir = next((candidate for candidate in PROTO_DIRS if (candidate / "c3po" / "v1").is_dir()), None)
    if proto_dir is None:
        sys.exit(f"ask.py: no c3po/v1/*.proto in {PROTO_DIRS[0]} nor in {PROTO_DIRS[1]}: copy the repository's proto folder there")
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    googleapis = pathlib.Path(annotations_pb2.__file__).parents[2]
    code = protoc.main(
        ["protoc", f"-I{proto_dir}", f"-I{googleapis}", f"-I{well_known}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
        + [f"c3po/v1/{name}.proto" for name in PROTOS]
    )
    if code != 0:
        sys.exit(f"ask.py: the .proto files in {proto_dir} do not compile")
    sys.path.insert(0, folder)
    return (
        importlib.import_module("c3po.v1.options_pb2"),
        importlib.import_module("c3po.v1.generation_pb2"),
        importlib.import_module("c3po.v1.generation_pb2_grpc"),
    )


def warn_of_misspelled_variables(program):
    """Of variables that are nearly called as one that a client reads. Others with the prefix are the server's or a script's."""
    for name in sorted(os.environ):
        prefix, ending = name[:len(PREFIX)], name[len(PREFIX):]
        nearest = difflib.get_close_matches(ending, VARIABLES, 1, cutoff=0.75)
        if prefix == PREFIX and nearest and ending not in VARIABLES:
            print(f"{program}: warning: {name} is set, and nothing reads it here; did you mean {PREFIX}{nearest[0]}?", file=sys.stderr)


def parse_arguments():
    parser = argparse.ArgumentParser(description="Ask a c3po server and stream the answer.")
    parser.add_argument("prompt")
    parser.add_argument("--server", default=os.environ.get("C3PO_SERVER", "127.0.0.1:50051"))
    parser.add_argument("--tls-ca", default=os.environ.get("C3PO_TLS_CA"), help="PEM file of who signs the server's certificate")
    parser.add_argument("--token-file", help="file with the token to call with; default: $C3PO_TOKEN")
    parser.add_argument("--insecure-token", action="store_true", default=bool(os.environ.get("C3PO_INSECURE_TOKEN")),
                        help="send the token without TLS to another machine: whoever listens on the way can take it")
    parser.add_argument("--timeout", type=float, default=300, help="seconds")
    parser.add_argument("--method", choices=METHODS)
    parser.add_argument("--k", type=int, help="number of neighbors")
    parser.add_argument("--steps", type=int, help="gradient steps")
    parser.add_argument("--collection", help="references to look for neighbors in")
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--choices", nargs="+", default=[], help="answer with one of these, each with the space before it, if any")
    parser.add_argument("--chat", action="store_true", help="send the prompt as a user's chat message")
    parser.add_argument("--json", action="store_true", help="print each event as one line of JSON")
    return parser.parse_args()


def make_request(arguments, options_pb2, generation_pb2):
    """Sets only what was asked for: every option left out takes the server's default."""
    request = generation_pb2.GenerateRequest()
    if arguments.chat:
        request.chat.messages.add(role="user", content=arguments.prompt)
    else:
        request.prompt = arguments.prompt
    request.choices.extend(arguments.choices)
    if arguments.max_tokens is not None:
        request.sampling.max_tokens = arguments.max_tokens
    if arguments.method is not None:
        request.optimization.method = options_pb2.Method.Value(METHODS[arguments.method])
    for field in ("k", "steps", "collection"):
        value = getattr(arguments, field)
        if value is not None:
            setattr(request.optimization, field, value)
    return request


def print_event(event, as_json):
    if as_json:
        print(
            json_format.MessageToJson(
                event, preserving_proto_field_name=True, including_default_value_fields=True, indent=None
            ),
            flush=True,
        )
    elif event.WhichOneof("event") == "delta":
        print(event.delta.text, end="", flush=True)
    elif event.WhichOneof("event") == "summary":
        print(flush=True)


def is_this_machine(server):
    """Whether an address, as gRPC reads it, can only be this machine's."""
    if server.startswith(("unix:", "unix-abstract:")):
        return True
    host = server[1:].partition("]")[0] if server.startswith("[") else server.partition(":")[0]
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_address(server):
    """ValueError: gRPC would take the address for one with port 443."""
    _, colon, port = server.rpartition("]")[2].rpartition(":")
    if not server.startswith(("unix:", "unix-abstract:")) and not (colon and port.isdecimal()):
        raise ValueError(f"--server: {server!r} is not ADDRESS:PORT")


def open_channel(arguments):
    check_address(arguments.server)
    # A server on this machine is not to be looked for behind a proxy.
    loopback = is_this_machine(arguments.server)
    options = [("grpc.enable_http_proxy", 0 if loopback else 1)]
    if not arguments.tls_ca:
        return grpc.insecure_channel(arguments.server, options)
    with open(arguments.tls_ca, "rb") as file:
        return grpc.secure_channel(arguments.server, grpc.ssl_channel_credentials(file.read()), options)


def authorization(arguments):
    token = os.environ.get("C3PO_TOKEN", "")
    if arguments.token_file:
        with open(arguments.token_file, encoding="ascii") as file:
            token = file.read().strip()
    if token and not arguments.tls_ca and not arguments.insecure_token and not is_this_machine(arguments.server):
        raise ValueError(f"--server: {arguments.server} is another machine, and without TLS the token could be read on the way: "
                         "give --tls-ca, or --insecure-token to send it all the same")
    return [("authorization", f"Bearer {token}")] if token else []


def main():
    arguments = parse_arguments()
    warn_of_misspelled_variables("ask.py")
    with tempfile.TemporaryDirectory() as folder:
        options_pb2, generation_pb2, generation_pb2_grpc = import_stubs(folder)
    try:
        request = make_request(arguments, options_pb2, generation_pb2)
        channel, metadata = open_channel(arguments), authorization(arguments)
    except (ValueError, OSError) as error:
        print(f"ask.py: {error}", file=sys.stderr)
        return 2
    with channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        try:
            for event in stub.Generate(request, timeout=arguments.timeout, metadata=metadata):
                print_event(event, arguments.json)
        except grpc.RpcError as error:
            print(f"ask.py: {error.code().name}: {error.details()}", file=sys.stderr)
            return EXIT_CODES.get(error.code(), 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
