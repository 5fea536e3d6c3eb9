"""What goes wrong, as exceptions. Their text is one line, meant for a person."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Protocol

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"


class C3poError(Exception):
    """A wrong argument, a failed call, or something that the service cannot do. The message names the argument, field or file."""


class ArgumentError(C3poError, ValueError):
    """An argument was refused before anything was sent."""


@dataclasses.dataclass(frozen=True)
class FieldViolation:
    """A field of the request that the server refused."""

    field: str  # dotted path: "optimization.k"
    description: str


@dataclasses.dataclass(frozen=True)
class ServerAdvice:
    """What a failed call's server said about trying again."""

    never: bool = False  # `grpc-retry-pushback-ms` is negative or no number (gRFC A6).
    pushback: float | None = None  # `grpc-retry-pushback-ms`, in seconds
    retry_delay: float | None = None  # google.rpc.RetryInfo, in seconds


class CallError(C3poError):
    """A call ended with a status other than OK. Each code that a caller may want to catch has a class of its own."""

    def __init__(self, target: str, code: grpc.StatusCode, message: str, *, reason: str = "",
                 field_violations: Sequence[FieldViolation] = (), advice: ServerAdvice = ServerAdvice(), request_id: str = "",
                 attempts: int = 1) -> None:
        self.target = target
        self.code = code
        self.message = message  # as the server wrote it
        self.reason = reason  # google.rpc.ErrorInfo, one of proto/c3po/v1/errors.md; "": not made by the service itself
        self.field_violations = tuple(field_violations)  # google.rpc.BadRequest
        self.advice = advice
        self.request_id = request_id  # that the request brought; "": none
        self.attempts = attempts  # the first included; gRPC's own, after UNAVAILABLE, are not counted
        super().__init__(self._text())

    @property
    def retry_delay(self) -> float | None:
        """Seconds after which the server asks to try again; None: it did not say."""
        return self.advice.pushback if self.advice.pushback is not None else self.advice.retry_delay

    @property
    def description(self) -> str:
        """The code, the message, and the violations that the message does not name: the error without the server's address."""
        unnamed = [f"{violation.field}: {violation.description}" for violation in self.field_violations
                   if violation.field not in self.message or violation.description not in self.message]
        parts = [self.code.name, *([self.message] if self.message else []), *(["; ".join(unnamed)] if unnamed else [])]
        # A message may hold what another client sent; a terminal must not obey it.
        return "".join(" " if ord(character) < 0x20 or ord(character) == 0x7F else character for character in ": ".join(parts))

    @property
    def exit_code(self) -> int:
        """That of the c3po command, for scripts: client/README.md."""
        return _EXIT_CODES.get(self.code, 1)

    def _text(self) -> str:
        text = f"{self.target}: {self.description}"
        if self.reason:
            text += f" [reason {self.reason}]"
        if self.request_id:
            text += f" [request {self.request_id}]"
        return text + (f" (after {self.attempts} attempts)" if self.attempts > 1 else "")


class InvalidArgument(CallError):
    """The request is wrong; `field_violations` says where."""


class NotFound(CallError):
    """The collection or reference is not there."""


class Unauthenticated(CallError):
    """The server wants a token, and the call brought none or a wrong one."""


class PermissionDenied(CallError):
    """The caller may not do this."""


class FailedPrecondition(CallError):
    """The server's state does not allow it; the message says what to do."""


class ResourceExhausted(CallError):
    """The server is full, or the caller's rate is spent; `retry_delay` says when to come back."""


class Unavailable(CallError):
    """The server is not reached, loads its model, or shuts down."""


class DeadlineExceeded(CallError):
    """The call's time is over."""


class Cancelled(CallError):
    """The call was cancelled, by close() or by the server."""


class DataLoss(CallError):
    """The reference store is damaged, or an import ended with samples that have no verdict."""


class Internal(CallError):
    """A defect of the server; report it with the request id."""


class Unimplemented(CallError):
    """The server does not have this method: it is older than this client."""


_CLASSES: dict[grpc.StatusCode, type[CallError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.DATA_LOSS: DataLoss,
    grpc.StatusCode.INTERNAL: Internal,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
}


_EXIT_CODES = {
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


class Outcome(Protocol):
    """How a call of grpc or grpc.aio ended."""

    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


def call_error(target: str, code: grpc.StatusCode, message: str, **more: object) -> CallError:
    """Of the class that `code` has."""
    return _CLASSES.get(code, CallError)(target, code, message, **more)  # type: ignore[arg-type]


def from_outcome(target: str, outcome: Outcome, *, request_id: str, attempts: int) -> CallError:
    """What a failed call says. Details that do not parse are left out: a proxy may have made them."""
    metadata = {key: value for key, value in outcome.trailing_metadata() or ()}
    status = status_pb2.Status()
    details = metadata.get(DETAILS_KEY, b"")
    try:
        status.ParseFromString(details if isinstance(details, bytes) else details.encode())
    except DecodeError:
        status.Clear()
    info, bad_request, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    delay: float | None = None
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad_request)
        if detail.Unpack(retry) and retry.HasField("retry_delay"):
            seconds = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
            delay = seconds if seconds >= 0 else None
    violations = [FieldViolation(violation.field, violation.description) for violation in bad_request.field_violations]
    never, pushback = _pushback(metadata.get(PUSHBACK_KEY))
    return call_error(target, outcome.code(), outcome.details() or "", reason=info.reason, field_violations=violations,
                      advice=ServerAdvice(never, pushback, delay), request_id=request_id, attempts=attempts)


def _pushback(value: str | bytes | None) -> tuple[bool, float | None]:
    if value is None:
        return False, None
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    return (False, int(text) / 1000) if text.isascii() and text.isdecimal() else (True, None)
