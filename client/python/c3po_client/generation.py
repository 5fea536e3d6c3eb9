"""An answer that is being generated."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from types import TracebackType

from c3po.v1 import generation_pb2 as gen
from c3po_client.answers import Answer, Event
from c3po_client.async_calls import AsyncStream
from c3po_client.sync_calls import Stream


class Generation(Answer, Iterator[Event]):
    """Its events, as they come: at most one OptimizationReport, TextDeltas, one GenerationSummary. text() and texts() read to the end.
    Leaving it early leaves the server at work: close it, or use it in a `with`."""

    def __init__(self, stream: Stream[gen.GenerateResponse]) -> None:
        super().__init__()
        self._stream = stream

    def __next__(self) -> Event:
        while True:
            event = self.take(next(self._stream))
            if event is not None:
                return event

    def text(self, answer: int = 0) -> str:
        """The whole text, what was read before included."""
        for _ in self:
            pass
        return self.text_so_far(answer)

    def texts(self) -> list[str]:
        """Of all answers, sampling.n of them."""
        self.text()
        return [self.text_so_far(answer) for answer in range(self.count())]

    def close(self) -> None:
        """Cancels the call unless it has ended; the server frees what it held."""
        self._stream.close()

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class AsyncGeneration(Answer, AsyncIterator[Event]):
    """As Generation, in an event loop: `async for`, `await text()`, `async with`."""

    def __init__(self, stream: AsyncStream[gen.GenerateResponse]) -> None:
        super().__init__()
        self._stream = stream

    async def __anext__(self) -> Event:
        while True:
            event = self.take(await self._stream.__anext__())
            if event is not None:
                return event

    async def text(self, answer: int = 0) -> str:
        """The whole text, what was read before included."""
        async for _ in self:
            pass
        return self.text_so_far(answer)

    async def texts(self) -> list[str]:
        """Of all answers, sampling.n of them."""
        await self.text()
        return [self.text_so_far(answer) for answer in range(self.count())]

    async def aclose(self) -> None:
        """Cancels the call unless it has ended; the server frees what it held."""
        await self._stream.aclose()

    async def __aenter__(self) -> AsyncGeneration:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()
