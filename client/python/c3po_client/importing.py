"""An import of references: samples go out while verdicts come in, with a bound on how many wait for theirs."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from types import TracebackType
from typing import Union

import grpc

from c3po.v1 import reference_pb2 as ref
from c3po_client.async_calls import AsyncCalls, AsyncStream
from c3po_client.call_settings import ENDLESS, CallSettings
from c3po_client.errors import ArgumentError
from c3po_client.methods import ADD
from c3po_client.samples import Sample, reference_sample
from c3po_client.sync_calls import Stream, SyncCalls

WINDOW_MAX = 1024  # Samples that wait for their verdicts: what an import keeps in memory.

SampleSource = Union[Iterable[Sample], AsyncIterable[Sample]]
OnProgress = Callable[[ref.AddProgress], None]


@dataclasses.dataclass(frozen=True)
class ImportOutcome:
    """How an import ended."""

    progress: ref.AddProgress  # Counts of all verdicts.
    # Verdicts that want a look: malformed samples, warnings, answers that contradict what is there. `sequence` counts samples from 0.
    problems: tuple[ref.SampleVerdict, ...]
    # That holds what was added: as min_index_generation of a request, every server of the same store answers with it.
    index_generation: int = 0


def is_problem(verdict: ref.SampleVerdict) -> bool:
    return verdict.verdict == ref.VERDICT_MALFORMED or bool(verdict.warning) or bool(verdict.contradicted_ids)


class _Progress:
    """What is out and what has come back. Used under its owner's lock."""

    def __init__(self, collection: str, replace: bool, window: int) -> None:
        if window < 1:
            raise ArgumentError(f"window: {window!r} is not at least 1")
        self.collection, self.replace, self.window = collection, replace, window
        self.kept: dict[int, ref.ReferenceSample] = {}  # by sequence, until the first response: a retry sends them again
        self.sent = self.judged = 0
        self.answered = False  # A response has come.
        self.source_error: BaseException | None = None
        self.progress = ref.AddProgress()
        self.index_generation = 0
        self.verdicts: collections.deque[ref.SampleVerdict] = collections.deque()

    def request(self, sequence: int, sample: ref.ReferenceSample, first: bool) -> ref.AddReferencesRequest:
        request = ref.AddReferencesRequest(sequence=sequence, sample=sample)
        if first:
            request.collection = self.collection
            request.replace = self.replace
        return request

    def send(self, sample: ref.ReferenceSample) -> int:
        sequence = self.sent
        self.sent += 1
        if not self.answered:
            self.kept[sequence] = sample
        return sequence

    def take(self, response: ref.AddReferencesResponse) -> None:
        self.answered = True
        self.kept.clear()
        self.judged += len(response.verdicts)
        self.verdicts.extend(response.verdicts)
        self.progress = response.progress
        self.index_generation = response.index_generation

    def is_full(self) -> bool:
        return self.sent - self.judged >= self.window

    def check_end(self, settings: CallSettings) -> None:
        """Raises the source's error, or DataLoss when the server left samples without a verdict."""
        if self.source_error is not None:
            raise self.source_error
        if self.judged < self.sent:
            raise settings.error(grpc.StatusCode.DATA_LOSS,
                                 f"the server ended the import and left {self.sent - self.judged} samples without a verdict")


class Import(Iterator[ref.SampleVerdict]):
    """The verdicts of an import, as they come; `progress` counts them. Samples are taken from their iterable by a thread of gRPC's,
    as fast as verdicts come. An error of the iterable ends the import in order: what was sent is awaited, then it is raised."""

    def __init__(self, calls: SyncCalls, samples: Iterable[Sample], collection: str, replace: bool, window: int, timeout: float | None):
        self._state = _Progress(collection, replace, window)
        self._settings = calls.settings
        self._samples = iter(samples)
        self._source = threading.Lock()  # Of who takes from the samples: an earlier attempt's thread may still be at it.
        self._changed = threading.Condition()
        self._attempt = 0
        self._stopped = False
        self._stream: Stream[ref.AddReferencesResponse] = calls.duplex(ADD, self._requests, ENDLESS if timeout is None else timeout)

    @property
    def progress(self) -> ref.AddProgress:
        return self._state.progress

    def __next__(self) -> ref.SampleVerdict:
        while not self._state.verdicts:
            try:
                response = next(self._stream)
            except BaseException as error:
                self._stop()
                if isinstance(error, StopIteration):
                    self._state.check_end(self._settings)
                raise
            with self._changed:
                self._state.take(response)
                self._changed.notify_all()
        return self._state.verdicts.popleft()

    def finish(self, on_progress: OnProgress | None = None) -> ImportOutcome:
        """Reads to the end. `on_progress` sees the counts after each batch that the server committed."""
        problems, seen = [], self._state.progress
        for verdict in self:
            if is_problem(verdict):
                problems.append(verdict)
            if on_progress is not None and self.progress is not seen:
                seen = self.progress
                on_progress(seen)
        return ImportOutcome(self.progress, tuple(problems), self._state.index_generation)

    def close(self) -> None:
        """Cancels the import. Samples that have a verdict are stored; of the rest nothing is known."""
        self._stop()
        self._stream.close()

    def __enter__(self) -> Import:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _requests(self) -> Iterator[ref.AddReferencesRequest]:
        """Of one attempt, which ends every earlier one's. First what an earlier one sent."""
        with self._changed:
            self._attempt += 1
            attempt = self._attempt
            self._changed.notify_all()
        return self._requests_of(attempt)

    def _requests_of(self, attempt: int) -> Iterator[ref.AddReferencesRequest]:
        first = True
        with self._source:
            with self._changed:
                again = list(self._state.kept.items())
        for sequence, sample in again:
            yield self._state.request(sequence, sample, first)
            first = False
        while (taken := self._take(attempt)) is not None:
            yield self._state.request(*taken, first)
            first = False

    def _take(self, attempt: int) -> tuple[int, ref.ReferenceSample] | None:
        """The next sample and its sequence; None: there is none for this attempt."""
        def over() -> bool:
            return self._stopped or self._attempt != attempt

        with self._changed:
            self._changed.wait_for(lambda: over() or not self._state.is_full())
        with self._source:
            with self._changed:
                if over() or self._state.source_error is not None:
                    return None
            try:
                sample = reference_sample(next(self._samples))
            except StopIteration:
                return None
            except BaseException as error:
                with self._changed:
                    self._state.source_error = error
                return None
            with self._changed:
                sequence = self._state.send(sample)
                return None if over() else (sequence, sample)  # A later attempt sends it: it is kept.


class AsyncImport(AsyncIterator[ref.SampleVerdict]):
    """As Import, in an event loop; the samples may be an asynchronous iterable."""

    def __init__(self, calls: AsyncCalls, samples: SampleSource, collection: str, replace: bool, window: int, timeout: float | None):
        self._state = _Progress(collection, replace, window)
        self._settings = calls.settings
        self._samples = samples.__aiter__() if isinstance(samples, AsyncIterable) else _asynchronous(samples)
        self._source = asyncio.Lock()
        self._changed = asyncio.Condition()
        self._attempt = 0
        self._stopped = False
        self._stream: AsyncStream[ref.AddReferencesResponse] = calls.duplex(ADD, self._requests, ENDLESS if timeout is None else timeout)

    @property
    def progress(self) -> ref.AddProgress:
        return self._state.progress

    async def __anext__(self) -> ref.SampleVerdict:
        while not self._state.verdicts:
            try:
                response = await self._stream.__anext__()
            except BaseException as error:
                await self._stop()
                if isinstance(error, StopAsyncIteration):
                    self._state.check_end(self._settings)
                raise
            async with self._changed:
                self._state.take(response)
                self._changed.notify_all()
        return self._state.verdicts.popleft()

    async def finish(self, on_progress: OnProgress | None = None) -> ImportOutcome:
        """Reads to the end. `on_progress` sees the counts after each batch that the server committed."""
        problems, seen = [], self._state.progress
        async for verdict in self:
            if is_problem(verdict):
                problems.append(verdict)
            if on_progress is not None and self.progress is not seen:
                seen = self.progress
                on_progress(seen)
        return ImportOutcome(self.progress, tuple(problems), self._state.index_generation)

    async def aclose(self) -> None:
        """Cancels the import. Samples that have a verdict are stored; of the rest nothing is known."""
        await self._stop()
        await self._stream.aclose()

    async def __aenter__(self) -> AsyncImport:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    async def _stop(self) -> None:
        self._stopped = True
        async with self._changed:
            self._changed.notify_all()

    def _requests(self) -> AsyncIterator[ref.AddReferencesRequest]:
        """Of one attempt, which ends every earlier one's. First what an earlier one sent."""
        self._attempt += 1
        return self._requests_of(self._attempt)

    async def _requests_of(self, attempt: int) -> AsyncIterator[ref.AddReferencesRequest]:
        first = True
        async with self._source:
            again = list(self._state.kept.items())
        for sequence, sample in again:
            yield self._state.request(sequence, sample, first)
            first = False
        while (taken := await self._take(attempt)) is not None:
            yield self._state.request(*taken, first)
            first = False

    async def _take(self, attempt: int) -> tuple[int, ref.ReferenceSample] | None:
        """The next sample and its sequence; None: there is none for this attempt."""
        def over() -> bool:
            return self._stopped or self._attempt != attempt

        async with self._changed:
            await self._changed.wait_for(lambda: over() or not self._state.is_full())
        async with self._source:
            if over() or self._state.source_error is not None:
                return None
            try:
                sample = reference_sample(await self._samples.__anext__())
            except StopAsyncIteration:
                return None
            except Exception as error:
                self._state.source_error = error
                return None
            sequence = self._state.send(sample)
            return None if over() else (sequence, sample)  # A later attempt sends it: it is kept.


async def _asynchronous(samples: Iterable[Sample]) -> AsyncIterator[Sample]:
    for sample in samples:
        yield sample
