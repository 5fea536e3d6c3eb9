"""Calls over a grpc.aio.Channel: retried, and failing with a CallError."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from c3po_client.call_settings import CallSettings
from c3po_client.connection import MoreMetadata
from c3po_client.errors import C3poError, Outcome
from c3po_client.methods import DuplexMethod, RequestT, ResponseT, StreamMethod, UnaryMethod
from c3po_client.retry import Attempts, codes_retried_here

MessageT = TypeVar("MessageT", bound=Message)

# What grpc.aio says of a call one of whose writes failed because the server had ended it. It takes the place of the call's status,
# or is replaced by it a moment later, whichever comes second.
WRITE_FAILED = "Internal error from Core"
STATUS_SECONDS, STATUS_PAUSE = 1.0, 0.01


class AsyncCalls:
    """Of one event loop: that in which the first call is made."""

    def __init__(self, open_channel: Callable[[], grpc.aio.Channel], settings: CallSettings,
                 sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self.settings = settings
        self._open_channel, self._sleep, self._closed = open_channel, sleep, False
        self._opened: grpc.aio.Channel | None = None  # gRPC binds a channel to the loop that runs when it is made.
        self._of = self  # whose channel it uses

    def with_metadata(self, more: MoreMetadata) -> AsyncCalls:
        """The same, whose calls bring these as well. It shares the channel, and its end."""
        calls = copy.copy(self)
        calls.settings = self.settings.with_metadata(more)
        return calls

    async def close(self) -> None:
        """Cancels the calls that are open."""
        self._of._closed = True
        if self._of._opened is not None:
            await self._of._opened.close()

    async def unary(self, method: UnaryMethod[RequestT, ResponseT], request: RequestT, timeout: float | None = None,
                    request_id: str = "") -> ResponseT:
        attempts = self.settings.attempts(codes_retried_here(method.retried), timeout)
        call = self._channel().unary_unary(method.path, request_serializer=method.request.SerializeToString,
                                           response_deserializer=method.response.FromString)
        while True:
            try:
                return await call(request, timeout=attempts.begin(), metadata=self.settings.metadata)
            except grpc.aio.AioRpcError as error:
                failure = self.settings.failure(cast(Outcome, error), attempts, request_id)
                failure.__cause__ = error
                pause = attempts.pause_after(failure)
            await self._sleep(pause)

    def stream(self, method: StreamMethod[RequestT, ResponseT], request: RequestT, timeout: float | None = None,
               request_id: str = "") -> AsyncStream[ResponseT]:
        attempts = self.settings.attempts(codes_retried_here(method.retried), timeout)
        call = self._channel().unary_stream(method.path, request_serializer=method.request.SerializeToString,
                                            response_deserializer=method.response.FromString)
        begin = lambda left: call(request, timeout=left, metadata=self.settings.metadata)
        return AsyncStream(begin, attempts, self.settings, request_id, self._sleep)

    def duplex(self, method: DuplexMethod[RequestT, ResponseT], requests: Callable[[], AsyncIterator[RequestT]],
               timeout: float | None = None) -> AsyncStream[ResponseT]:
        """`requests()` is called for each attempt."""
        attempts = self.settings.attempts(codes_retried_here(method.retried), timeout)
        call = self._channel().stream_stream(method.path, request_serializer=method.request.SerializeToString,
                                             response_deserializer=method.response.FromString)
        begin = lambda left: call(requests(), timeout=left, metadata=self.settings.metadata)
        return AsyncStream(begin, attempts, self.settings, "", self._sleep)

    def _channel(self) -> grpc.aio.Channel:
        of = self._of
        if of._closed:
            raise C3poError("the client is closed")
        if of._opened is None:
            of._opened = of._open_channel()
        return of._opened


class AsyncStream(AsyncIterator[MessageT], Generic[MessageT]):
    """The messages of a call, as they come. Begins at once, in a running loop; to leave it early, close it or use it in an
    `async with`. Its error is final once a message has come. A task that is cancelled while it waits for a message cancels the call."""

    def __init__(self, begin: Callable[[float | None], Any], attempts: Attempts, settings: CallSettings, request_id: str,
                 sleep: Callable[[float], Awaitable[None]]) -> None:
        self._begin, self._attempts, self._settings, self._request_id = begin, attempts, settings, request_id
        self._sleep = sleep
        self._closed = False
        self._received = False
        self._start()

    async def __anext__(self) -> MessageT:
        while True:
            try:
                message = cast(MessageT, await self._messages.__anext__())
            except grpc.aio.AioRpcError as error:
                failure = self._settings.failure(await self._end.outcome(error), self._attempts, self._request_id)
                failure.__cause__ = error
                if self._received or self._closed:
                    raise failure
                await self._sleep(self._attempts.pause_after(failure))
                self._check_open()
                self._start()
                continue
            except asyncio.CancelledError:
                # grpc.aio raises it for a call that was cancelled here as well as for a task that was.
                if self._closed and not _is_cancelled(asyncio.current_task()):
                    self._check_open()
                self._call.cancel()
                raise
            self._received = True
            return message

    def _start(self) -> None:
        self._call = self._begin(self._attempts.begin())
        self._end = _CallEnd(self._call)
        self._messages = self._call.__aiter__()

    def _check_open(self) -> None:
        if self._closed:
            raise self._settings.error(grpc.StatusCode.CANCELLED, "closed by this client")

    async def last(self) -> MessageT | None:
        """Reads to the end; the last message, None where none came."""
        message: MessageT | None = None
        async for message in self:
            pass
        return message

    async def aclose(self) -> None:
        """Cancels the call unless it has ended. Who waits for a message gets Cancelled."""
        self._closed = True
        self._call.cancel()

    async def __aenter__(self) -> AsyncStream[MessageT]:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()


@dataclasses.dataclass(frozen=True)
class _Status:
    """An Outcome."""

    status: tuple[grpc.StatusCode, str | None, Any]

    def code(self) -> grpc.StatusCode:
        return self.status[0]

    def details(self) -> str | None:
        return self.status[1]

    def trailing_metadata(self) -> Any:
        return self.status[2]


class _CallEnd:
    """How a call has ended, whatever became of its writes."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._told: Outcome | None = None
        call.add_done_callback(self._remember)

    async def outcome(self, error: grpc.aio.AioRpcError) -> Outcome:
        """`error`: what the call raised."""
        if error.details() != WRITE_FAILED:
            return cast(Outcome, error)
        waited = 0.0
        while self._told is None and waited < STATUS_SECONDS:
            self._remember(self._call)
            await asyncio.sleep(STATUS_PAUSE)
            waited += STATUS_PAUSE
        return self._told or cast(Outcome, error)

    def _remember(self, call: Any) -> None:
        status = _Status((_now(call.code()), _now(call.details()), _now(call.trailing_metadata())))
        if self._told is None and status.details() != WRITE_FAILED:
            self._told = status


def _now(ready: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that has nothing to wait for."""
    try:
        ready.send(None)
    except StopIteration as result:
        return result.value
    raise AssertionError("a call that has ended waits for its status")


def _is_cancelled(task: asyncio.Task[Any] | None) -> bool:
    """Whether a task was told to end; Python 3.10 does not say."""
    cancelling = getattr(task, "cancelling", None)
    return cancelling is not None and cancelling() > 0
