"""What all calls of a client share, however they are made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import grpc

from c3po_client.connection import Metadata, MoreMetadata
from c3po_client.errors import ArgumentError, CallError, Outcome, call_error, from_outcome
from c3po_client.retry import Attempts, RetryPolicy

DEFAULT_TIMEOUT = 300.0  # The command's.
ENDLESS = math.inf  # Of work that takes as long as it takes: imports, learning, copies of the store.


@dataclasses.dataclass(frozen=True)
class CallSettings:
    target: str
    metadata: Metadata = dataclasses.field(repr=False)  # with the token
    timeout: float = DEFAULT_TIMEOUT  # seconds of a call that does not say; infinite: no deadline
    policy: RetryPolicy = RetryPolicy()

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise ArgumentError(f"timeout: {self.timeout!r} is not a number of seconds above 0")

    def attempts(self, codes: Iterable[grpc.StatusCode], timeout: float | None) -> Attempts:
        return Attempts(self.policy, codes, self.timeout if timeout is None else timeout)

    def with_metadata(self, more: MoreMetadata) -> CallSettings:
        return dataclasses.replace(self, metadata=(*self.metadata, *more))

    def failure(self, outcome: Outcome, attempts: Attempts, request_id: str) -> CallError:
        return from_outcome(self.target, outcome, request_id=request_id, attempts=attempts.made)

    def error(self, code: grpc.StatusCode, message: str) -> CallError:
        """One that this client makes."""
        return call_error(self.target, code, message)
