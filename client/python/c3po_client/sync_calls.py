"""Calls over a grpc.Channel: retried, and failing with a CallError."""

from __future__ import annotations

import contextlib
import copy
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

import grpc
from google.protobuf.message import Message

from c3po_client.call_settings import CallSettings
from c3po_client.connection import MoreMetadata
from c3po_client.errors import C3poError, CallError, Outcome
from c3po_client.methods import DuplexMethod, RequestT, ResponseT, StreamMethod, UnaryMethod
from c3po_client.retry import Attempts, codes_retried_here

MessageT = TypeVar("MessageT", bound=Message)


class SyncCalls:
    """Thread-safe."""

    def __init__(self, channel: grpc.Channel, settings: CallSettings, sleep: Callable[[float], None] = time.sleep) -> None:
        self.settings = settings
        self._channel, self._sleep, self._closed = channel, sleep, threading.Event()

    def with_metadata(self, more: MoreMetadata) -> SyncCalls:
        """The same, whose calls bring these as well. It shares the channel, and its end."""
        calls = copy.copy(self)
        calls.settings = self.settings.with_metadata(more)
        return calls

    def close(self) -> None:
        """Cancels the calls that are open."""
        self._closed.set()
        self._channel.close()

    def unary(self, method: UnaryMethod[RequestT, ResponseT], request: RequestT, timeout: float | None = None,
              request_id: str = "") -> ResponseT:
        self._check_open()
        attempts = self.settings.attempts(codes_retried_here(method.retried), timeout)
        call = self._channel.unary_unary(method.path, request_serializer=method.request.SerializeToString,
                                         response_deserializer=method.response.FromString)
        while True:
            try:
                return call(request, timeout=attempts.begin(), metadata=self.settings.metadata)
            except grpc.RpcError as error:
                failure = self.settings.failure(cast(Outcome, error), attempts, request_id)
                failure.__cause__ = error
                pause = attempts.pause_after(failure)
            self._sleep(pause)

    def stream(self, method: StreamMethod[RequestT, ResponseT], request: RequestT, timeout: float | None = None,
               request_id: str = "") -> Stream[ResponseT]:
        self._check_open()
        attempts = self.settings.attempts(codes_retried_here(method.retried), timeout)
        call = self._channel.unary_stream(method.path, request_serializer=method.request.SerializeToString,
                                          response_deserializer=method.response.FromString)
        begin = lambda left: call(request, timeout=left, metadata=self.settings.metadata)
        return Stream(begin, attempts, self.settings, request_id)

    def duplex(self, method: DuplexMethod[RequestT, ResponseT], requests: Callable[[], Iterator[RequestT]],
               timeout: float | None = None) -> Stream[ResponseT]:
        """`requests()` is called for each attempt."""
        self._check_open()
        attempts = self.settings.attempts(codes_retried_here(method.retried), timeout)
        call = self._channel.stream_stream(method.path, request_serializer=method.request.SerializeToString,
                                           response_deserializer=method.response.FromString)
        begin = lambda left: call(requests(), timeout=left, metadata=self.settings.metadata)
        return Stream(begin, attempts, self.settings, "")

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise C3poError("the client is closed")


class Stream(Iterator[MessageT], Generic[MessageT]):
    """The messages of a call, as they come. Begins at once; to leave it early, close it or use it in a `with`. Its error is final
    once a message has come. One thread iterates; any may close."""

    def __init__(self, begin: Callable[[float | None], Any], attempts: Attempts, settings: CallSettings, request_id: str) -> None:
        self._begin, self._attempts, self._settings, self._request_id = begin, attempts, settings, request_id
        self._closed = threading.Event()
        self._received = self._ended = False
        self._call = begin(attempts.begin())

    def __next__(self) -> MessageT:
        while True:
            try:
                message = cast(MessageT, next(self._call))
            except grpc.RpcError as error:
                failure = self._settings.failure(cast(Outcome, error), self._attempts, self._request_id)
                failure.__cause__ = error
                if self._received or self._closed.is_set():
                    raise failure
                self._try_again(self._attempts.pause_after(failure))
                continue
            except StopIteration:
                if self._closed.is_set() and not self._ended and _is_generator(self._call):
                    raise self._closed_here() from None
                self._ended = True
                raise
            self._received = True
            if self._closed.is_set() and _is_generator(self._call):  # close() could not end what was being read.
                self._call.close()
                raise self._closed_here()
            return message

    def _closed_here(self) -> CallError:
        return self._settings.error(grpc.StatusCode.CANCELLED, "closed by this client")

    def _try_again(self, pause: float) -> None:
        if not self._closed.wait(pause):
            self._call = self._begin(self._attempts.begin())
            if not self._closed.is_set():
                return
        _cancel(self._call)  # close() may have seen the call before.
        raise self._closed_here()

    def last(self) -> MessageT | None:
        """Reads to the end; the last message, None where none came."""
        message: MessageT | None = None
        for message in self:
            pass
        return message

    def close(self) -> None:
        """Cancels the call unless it has ended. Who waits for a message gets Cancelled."""
        self._closed.set()
        _cancel(self._call)

    def __enter__(self) -> Stream[MessageT]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _is_generator(call: Any) -> bool:
    """Whether an interceptor made a generator of the call, as OpenTelemetry's does. It cannot be cancelled, but cancels its call when it
    is closed, which only its reader can do while it is being read."""
    return not hasattr(call, "cancel")


def _cancel(call: Any) -> None:
    if not _is_generator(call):
        call.cancel()
        return
    with contextlib.suppress(ValueError):  # It is being read: its reader looks for itself.
        call.close()
