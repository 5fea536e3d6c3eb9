"""What the tests of a running service share beside its process: the generated modules, samples to import, and errors that are
checked against the closed list of reasons."""

import re

from google.rpc import error_details_pb2, status_pb2

import server_process

pb = server_process.make_stubs()
gen, ref, opt, srv = pb["generation_pb2"], pb["reference_pb2"], pb["options_pb2"], pb["server_pb2"]

DOCUMENTED = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", (server_process.SOURCE / "proto/c3po/v1/errors.md").read_text(), re.M))


def details(error):
    """(reason, violated fields, retry delay in seconds or None) of a failed call, whose reason is on the closed list."""
    metadata = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(metadata.get("grpc-status-details-bin", b""))
    reason, fields, pause = None, [], None
    for detail in status.details:
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(bad):
            fields = [violation.field for violation in bad.field_violations]
        elif detail.Unpack(retry):
            pause = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    if DOCUMENTED.get(reason) != error.code().name:
        raise AssertionError(f"{error.code()} with reason {reason} is not documented: {error.details()}")
    return reason, fields, pause


def tokens_of(events):
    return [token for event in events if event.HasField("delta") for token in event.delta.token_ids]


def samples(count):
    """Questions of which some have choices; the tiny random model gets some right and some wrong."""
    for i in range(count):
        choices = [f" {c}" for c in range(7)] if i % 2 == 0 else []
        yield ref.ReferenceSample(prompt=f"What is {i} modulo seven?", answer=f" {i % 7}", choices=choices, metadata={"i": str(i)})
