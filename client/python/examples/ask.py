#!/usr/bin/env python3
"""Asks a c3po server and streams the answer. Needs c3po-client: pip install ./client/python

Exit codes are those of the `c3po` command (1 other, 2 usage, 3 unavailable, 4 invalid argument, ...).
"""

import argparse
import logging
import pathlib
import sys

from c3po.v1 import generation_pb2
from c3po_client import ArgumentError, CallError, Client, Tls, methods, to_json
from c3po_client.requests import chat_request, generate_request

METHODS = ["none", "mode", "kernel", "ngd"]


def parse_arguments():
    parser = argparse.ArgumentParser(description="Ask a c3po server and stream the answer.")
    parser.add_argument("prompt")
    parser.add_argument("--server", help="HOST:PORT; default: $C3PO_SERVER, 127.0.0.1:50051")
    parser.add_argument("--tls-ca", help="PEM file of who signs the server's certificate; default: $C3PO_TLS_CA")
    parser.add_argument("--token-file", type=pathlib.Path, help="file with the token to call with; default: $C3PO_TOKEN")
    parser.add_argument("--insecure-token", action="store_true",
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


def connect(arguments):
    token = arguments.token_file.read_text(encoding="ascii").strip() if arguments.token_file else None
    return Client.from_environment(arguments.server, tls=Tls(arguments.tls_ca) if arguments.tls_ca else None, token=token,
                                   insecure_token=arguments.insecure_token, timeout=arguments.timeout)


def make_request(arguments):
    """Sets only what was asked for: every option left out takes the server's default."""
    given = {name: getattr(arguments, name) for name in ("method", "k", "steps", "collection") if getattr(arguments, name) is not None}
    sampling = None if arguments.max_tokens is None else {"max_tokens": arguments.max_tokens}
    make, content = (chat_request, [("user", arguments.prompt)]) if arguments.chat else (generate_request, arguments.prompt)
    return make(content, arguments.choices, sampling, given or None, "", None)


def print_answer(client, request, as_json):
    if as_json:
        with client.stream(methods.GENERATE, request) as responses:
            for response in responses:
                print(to_json(response), flush=True)
        return
    with client.generate_request(request) as events:
        for event in events:
            if isinstance(event, generation_pb2.TextDelta):
                print(event.text, end="", flush=True)
    print(flush=True)


def main():
    logging.addLevelName(logging.WARNING, "warning")
    logging.basicConfig(format="ask.py: %(levelname)s: %(message)s")
    arguments = parse_arguments()
    try:
        with connect(arguments) as client:
            print_answer(client, make_request(arguments), arguments.json)
    except (ArgumentError, OSError) as error:
        print(f"ask.py: {error}", file=sys.stderr)
        return 2
    except CallError as error:
        print(f"ask.py: {error.description}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
