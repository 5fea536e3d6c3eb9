"""When a failed call is tried again. Only UNAVAILABLE and RESOURCE_EXHAUSTED are, only for calls that may be repeated without
harm, and never once a message of the answer's stream has come.

UNAVAILABLE is gRPC's to retry, by the service config of the channel (gRFC A6). RESOURCE_EXHAUSTED is retried here, because the
server says in google.rpc.RetryInfo when to come back, which gRPC does not read.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import time
from collections.abc import Callable, Iterable

import grpc

from c3po_client.errors import ArgumentError, CallError, ServerAdvice
from c3po_client.methods import ALL_METHODS, Retried

ATTEMPTS_MAX = 5  # gRPC's own bound.


@dataclasses.dataclass(frozen=True)
class RetryPolicy:
    """The C++ client's (client/retry.h). Times are in seconds. ArgumentError: a value is out of its range."""

    attempts: int = 4  # calls in all, the first included: 1 to 5
    initial_backoff: float = 0.2
    backoff_max: float = 5.0
    multiplier: float = 2.0
    jitter: float = 0.2  # a backoff is drawn evenly from [1 - jitter, 1 + jitter] times its nominal value
    server_delay_max: float = 60.0  # a server that asks for a longer pause gets none: its error is raised at once

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not 1 <= self.attempts <= ATTEMPTS_MAX:
            raise ArgumentError(f"retry.attempts: {self.attempts!r} is not from 1 to {ATTEMPTS_MAX}")
        for name in ("initial_backoff", "backoff_max"):
            if not 0.001 <= getattr(self, name) < math.inf:
                raise ArgumentError(f"retry.{name}: {getattr(self, name)!r} is not a number of seconds from 0.001")
        if not 1 <= self.multiplier <= 100 or not 0 <= self.jitter <= 1 or not self.server_delay_max >= 0:
            raise ArgumentError("retry: multiplier is not from 1 to 100, jitter not from 0 to 1, or server_delay_max below 0")

    def pause(self, attempts_made: int, advice: ServerAdvice, uniform: float) -> float | None:
        """Seconds before the attempt after `attempts_made` (>= 1), or None: the call is not tried again. The server's pushback is
        taken as it is; its RetryInfo is a lower bound of the backoff
          min(backoff_max, initial_backoff * multiplier^(attempts_made - 1)) * (1 + jitter * (2 * uniform - 1)),
        with `uniform` in [0, 1)."""
        if advice.never or attempts_made >= self.attempts:
            return None
        asked = advice.pushback if advice.pushback is not None else advice.retry_delay
        if asked is not None and asked > self.server_delay_max:
            return None
        if advice.pushback is not None:
            return advice.pushback
        nominal = min(self.backoff_max, self.initial_backoff * self.multiplier ** (attempts_made - 1))
        return max(nominal * (1 + self.jitter * (2 * uniform - 1)), advice.retry_delay or 0.0)


def service_config(policy: RetryPolicy) -> str:
    """The channel's service config, as JSON: after UNAVAILABLE, methods that may be repeated are tried again."""
    if policy.attempts == 1:
        return "{}"
    names = [{"service": method.service, "method": method.name} for method in ALL_METHODS if method.retried is Retried.BY_GRPC]
    retry_policy = {
        "maxAttempts": policy.attempts,
        "initialBackoff": f"{policy.initial_backoff:.3f}s",
        "maxBackoff": f"{policy.backoff_max:.3f}s",
        "backoffMultiplier": policy.multiplier,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return json.dumps({"methodConfig": [{"name": names, "retryPolicy": retry_policy}]})


def codes_retried_here(retried: Retried) -> frozenset[grpc.StatusCode]:
    """After which codes this package, rather than gRPC, tries a call again."""
    if retried is Retried.BY_GRPC:
        return frozenset({grpc.StatusCode.RESOURCE_EXHAUSTED})
    if retried is Retried.HERE:
        return frozenset({grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE})
    return frozenset()


class Attempts:
    """The attempts of one call within its time. Used by one thread or task at a time."""

    def __init__(self, policy: RetryPolicy, codes: Iterable[grpc.StatusCode], timeout: float,
                 clock: Callable[[], float] = time.monotonic, uniform: Callable[[], float] = random.random) -> None:
        """`timeout`: seconds for all attempts and the pauses between them; infinite: no deadline."""
        if not timeout > 0:
            raise ArgumentError(f"timeout: {timeout!r} is not a number of seconds above 0")
        self._policy, self._codes, self._clock, self._uniform = policy, frozenset(codes), clock, uniform
        self._deadline = clock() + timeout
        self.made = 0

    def begin(self) -> float | None:
        """Counts an attempt. Seconds that are left for it; None: any number."""
        self.made += 1
        left = self._deadline - self._clock()
        return None if math.isinf(left) else max(left, 0.001)

    def pause_after(self, error: CallError) -> float:
        """Seconds before the next attempt. Raises `error` where there is none, also when the pause would pass the deadline."""
        pause = self._policy.pause(self.made, error.advice, self._uniform()) if error.code in self._codes else None
        if pause is None or pause >= self._deadline - self._clock():
            raise error
        return pause
