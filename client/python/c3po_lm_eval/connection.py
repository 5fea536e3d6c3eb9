"""Calls to one c3po server: retried while it is full or away, and failing with one line that says what and where."""

import difflib
import ipaddress
import logging
import math
import os
import pathlib
import time

import grpc

from c3po_lm_eval.errors import C3poError
from c3po_lm_eval.stubs import (generation_pb2, generation_pb2_grpc, reference_pb2, reference_pb2_grpc, server_pb2,
                                server_pb2_grpc)

LOGGER = logging.getLogger(__name__)
PREFIX = "C3PO_"
VARIABLES = ["CACHE_DIR", "SERVER", "TOKEN", "TLS_CA", "TLS_CERT", "TLS_KEY", "INSECURE_TOKEN"]  # Of all clients.
ATTEMPTS = 4  # As the C++ client's.
FIRST_PAUSE_SECONDS = 0.5  # Doubled with each attempt; the server's own wish, where it has one, counts more.
# A search may fail so where nothing is known of a question: no such collection, or a prompt that cannot be embedded.
NOT_KNOWN = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL)
SAME_TEXT_DISTANCE_MAX = 1e-4  # Embeddings this near are of one text, up to rounding (client/eval/known_questions.h).
RETRIED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)


def is_this_machine(target: str) -> bool:
    """Whether an address, as gRPC reads it, can only be this machine's: a unix socket, "localhost", or a number of loopback."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    host = target[1:].partition("]")[0] if target.startswith("[") else target.partition(":")[0]
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def misspelled_variables() -> list[str]:
    """A line for each variable that is nearly called as one that a client reads. Others with the prefix are the server's or a script's."""
    lines = []
    for name in sorted(os.environ):
        prefix, ending = name[:len(PREFIX)], name[len(PREFIX):]
        nearest = difflib.get_close_matches(ending, VARIABLES, 1, cutoff=0.75)
        if prefix == PREFIX and nearest and ending not in VARIABLES:
            lines.append(f"{name} is set, and nothing reads it here; did you mean {PREFIX}{nearest[0]}?")
    return lines


class Connection:
    """Thread-safe. Every method raises C3poError when the call fails."""

    def __init__(self, target: str, timeout_seconds: float):
        _, colon, port = target.rpartition("]")[2].rpartition(":")
        if not target.startswith(("unix:", "unix-abstract:")) and not (colon and port.isdecimal()):
            raise C3poError(f"{target!r} is not ADDRESS:PORT")  # gRPC would go to port 443.
        for line in misspelled_variables():
            LOGGER.warning("%s", line)
        # A server on this machine is not to be looked for behind a proxy.
        loopback = is_this_machine(target)
        self._target = target
        options = [("grpc.enable_http_proxy", 0 if loopback else 1), ("grpc.max_receive_message_length", -1)]
        authority, token = os.environ.get("C3PO_TLS_CA"), os.environ.get("C3PO_TOKEN")  # As the command line takes them.
        if authority:
            credentials = grpc.ssl_channel_credentials(pathlib.Path(authority).read_bytes())
            self._channel = grpc.secure_channel(target, credentials, options)
        else:
            if token and not loopback and not os.environ.get("C3PO_INSECURE_TOKEN"):
                raise C3poError(f"{target} is another machine, and without TLS the token of C3PO_TOKEN could be read on the way: "
                                "set C3PO_TLS_CA, or C3PO_INSECURE_TOKEN=1 to send it all the same")
            self._channel = grpc.insecure_channel(target, options)
        self._call_options = {"timeout": timeout_seconds, "metadata": [("authorization", f"Bearer {token}")] if token else []}
        self._generation = generation_pb2_grpc.GenerationServiceStub(self._channel)
        self._reference = reference_pb2_grpc.ReferenceServiceStub(self._channel)
        self._server = server_pb2_grpc.ServerServiceStub(self._channel)

    def server_info(self):
        request = server_pb2.GetServerInfoRequest()
        return self._call(lambda: self._server.GetServerInfo(request, **self._call_options))

    def score(self, request):
        """A generation_pb2.ScoreResponse with as many scores as the request has continuations."""
        response = self._call(lambda: self._generation.Score(request, **self._call_options))
        if len(response.scores) != len(request.continuations):
            raise C3poError(f"the server scored {len(response.scores)} continuations of {len(request.continuations)}")
        for score in response.scores:
            if not math.isfinite(score.log_likelihood):  # The harness would take the first choice that is NaN for the best.
                raise C3poError(f"the server gave a log-likelihood of {score.log_likelihood}")
        return response

    def generate(self, request):
        """(text, generation_pb2.OptimizationReport) of a whole stream."""

        def read():
            text, report = [], generation_pb2.OptimizationReport()
            for event in self._generation.Generate(request, **self._call_options):
                if event.WhichOneof("event") == "delta":
                    text.append(event.delta.text)
                elif event.WhichOneof("event") == "optimization":
                    report = event.optimization
            return "".join(text), report

        return self._call(read)

    def is_among_references(self, collection: str, prompt: str) -> bool:
        """Whether the collection has the prompt as a reference: the same text but for white space at its ends, or distance 0."""
        request = reference_pb2.SearchReferencesRequest(collection=collection, text=prompt, k=4)
        try:
            response = self._call(lambda: self._reference.Search(request, **self._call_options))
        except C3poError as error:
            if isinstance(error.__cause__, grpc.RpcError) and error.__cause__.code() in NOT_KNOWN:
                return False
            raise
        return any(hit.distance <= SAME_TEXT_DISTANCE_MAX or hit.reference.sample.prompt.strip() == prompt.strip()
                   for hit in response.hits)

    def tokenize(self, text: str, add_special_tokens: bool) -> list[int]:
        if text == "":
            return []
        request = generation_pb2.TokenizeRequest(text=text, add_special_tokens=add_special_tokens)
        return list(self._call(lambda: self._generation.Tokenize(request, **self._call_options)).ids)

    def detokenize(self, ids: list[int], skip_special_tokens: bool) -> str:
        request = generation_pb2.DetokenizeRequest(ids=ids, skip_special_tokens=skip_special_tokens)
        return self._call(lambda: self._generation.Detokenize(request, **self._call_options)).text

    def _call(self, call):
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return call()
            except grpc.RpcError as error:
                if error.code() not in RETRIED or attempt == ATTEMPTS:
                    raise C3poError(f"{self._target}: {error.code().name}: {error.details()}") from error
                time.sleep(_pause_seconds(error, attempt))
        raise AssertionError("every attempt returns or raises")


def _pause_seconds(error: grpc.RpcError, attempt: int) -> float:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-retry-pushback-ms" and str(value).isdigit():
            return int(value) / 1000
    return FIRST_PAUSE_SECONDS * 2 ** (attempt - 1)
