"""The client of programs with an event loop: client.py with `await`."""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from types import TracebackType

import grpc
import grpc.aio

from c3po.v1 import generation_pb2 as gen
from c3po.v1 import reference_pb2 as ref
from c3po.v1 import server_pb2 as srv
from c3po_client import health, methods, requests
from c3po_client.answers import Choice, choice_of
from c3po_client.async_calls import AsyncCalls, AsyncStream
from c3po_client.backup import BackupFile
from c3po_client.call_settings import DEFAULT_TIMEOUT, ENDLESS, CallSettings
from c3po_client.connection import (DEFAULT_TARGET, MoreMetadata, Tls, call_metadata, channel_options, check_target,
                                    misspelled_variables, read_environment)
from c3po_client.errors import DeadlineExceeded, ResourceExhausted, Unavailable
from c3po_client.generation import AsyncGeneration
from c3po_client.importing import WINDOW_MAX, AsyncImport, ImportOutcome, OnProgress, SampleSource
from c3po_client.methods import RequestT, ResponseT, StreamMethod, UnaryMethod
from c3po_client.options import Filter, Form, Optimization, Sampling, TunePriorFields, tune_prior_request
from c3po_client.requests import Experts, Messages, Objects, Prompt
from c3po_client.retry import RetryPolicy
from c3po_client.samples import read_samples

LOGGER = logging.getLogger("c3po_client")
HEALTH_PAUSE = 0.2  # Seconds between two questions of wait_until_serving().
HEALTH_TIMEOUT = 5.0


class AsyncClient:
    """Calls to one c3po server, of the event loop in which the first is made. One client serves a whole program. Use it in an
    `async with`, or close it.

    Every method raises C3poError: ArgumentError before anything is sent, a CallError of the class that the status has after. `timeout`
    is in seconds, for all attempts together; None: the client's; math.inf: no deadline. `metadata` goes with the call beside the
    client's, such as ("traceparent", ...); with_metadata() is for the methods that do not have it. What an option's value may be is in
    options.py, when a call is tried again in retry.py.
    """

    def __init__(self, target: str = DEFAULT_TARGET, *, tls: Tls | None = None, token: str | None = None, insecure_token: bool = False,
                 timeout: float = DEFAULT_TIMEOUT, retry: RetryPolicy = RetryPolicy(), metadata: Sequence[tuple[str, str]] = ()) -> None:
        """`target`: HOST:PORT, unix:PATH, or what else gRPC resolves. `token`: sent with every call; without TLS only to this machine,
        unless `insecure_token`. `metadata`: sent with every call, too. Connects when first used."""
        check_target(target)
        settings = CallSettings(target, call_metadata(target, token, tls is not None, insecure_token, metadata), timeout, retry)
        options = channel_options(target, retry)
        credentials = None if tls is None else tls.credentials()
        open_channel = lambda: (grpc.aio.insecure_channel(target, options) if credentials is None else
                                grpc.aio.secure_channel(target, credentials, options))
        self._calls = AsyncCalls(open_channel, settings)
        self.references = AsyncReferences(self._calls)
        self.collections = AsyncCollections(self._calls)

    def with_metadata(self, metadata: MoreMetadata) -> AsyncClient:
        """A client of the same connection whose calls bring these as well: `client.with_metadata([("traceparent", ...)]).score(...)`.
        What closes one of the two closes both."""
        client = copy.copy(self)
        client._calls = self._calls.with_metadata(metadata)
        client.references = AsyncReferences(client._calls)
        client.collections = AsyncCollections(client._calls)
        return client

    @classmethod
    def from_environment(cls, target: str | None = None, *, tls: Tls | None = None, token: str | None = None,
                         insecure_token: bool = False, timeout: float = DEFAULT_TIMEOUT, retry: RetryPolicy = RetryPolicy(),
                         metadata: Sequence[tuple[str, str]] = ()) -> AsyncClient:
        """As the c3po command: what is not given comes from C3PO_SERVER, C3PO_TOKEN, C3PO_TLS_CA, C3PO_TLS_CERT and C3PO_TLS_KEY,
        C3PO_INSECURE_TOKEN. Warns of variables that are nearly called so."""
        for line in misspelled_variables(os.environ):
            LOGGER.warning("%s", line)
        environment = read_environment(os.environ)
        return cls(target or environment.target, tls=tls or environment.tls, token=token or environment.token,
                   insecure_token=insecure_token or environment.insecure_token, timeout=timeout, retry=retry, metadata=metadata)

    # --- Answers ---

    def generate(self, prompt: Prompt, *, choices: Iterable[str] = (), sampling: Sampling | None = None,
                 optimization: Optimization | None = None, request_id: str = "", priority: str | int | None = None,
                 return_routed_experts: bool = False, experts_per_token: int | None = None,
                 timeout: float | None = None, metadata: MoreMetadata = (), structured_output: Form | None = None) -> AsyncGeneration:
        """Begins an answer to a text or to token ids; the AsyncGeneration gives its events, or its text. With `choices` it is one of
        them."""
        return self.generate_request(requests.generate_request(prompt, choices, sampling, optimization, request_id, priority,
                                                              Experts(return_routed_experts, experts_per_token), structured_output), timeout, metadata=metadata)

    def chat(self, messages: Messages, *, tools: Objects = (), documents: Objects = (), choices: Iterable[str] = (),
             sampling: Sampling | None = None, optimization: Optimization | None = None, request_id: str = "",
             priority: str | int | None = None, return_routed_experts: bool = False, experts_per_token: int | None = None,
             timeout: float | None = None, metadata: MoreMetadata = (), structured_output: Form | None = None) -> AsyncGeneration:
        """The same for a chat: ("user", "Hello"), {"role": "user", "content": "Hello"}, ChatMessages, or a Chat. `tools` and `documents`
        are what its template tells the model: mappings, or JSON."""
        return self.generate_request(requests.chat_request(messages, choices, sampling, optimization, request_id, priority, tools,
                                                          documents, Experts(return_routed_experts, experts_per_token), structured_output), timeout, metadata=metadata)

    async def choose(self, prompt: Prompt, choices: Sequence[str], *, optimization: Optimization | None = None, request_id: str = "",
                     priority: str | int | None = None, experts_per_token: int | None = None, timeout: float | None = None, metadata: MoreMetadata = ()) -> Choice:
        """Which of the choices, each with the leading space that the prompt's format wants, is the answer."""
        async with self.generate(prompt, choices=choices, optimization=optimization, request_id=request_id, priority=priority,
                                 experts_per_token=experts_per_token, timeout=timeout, metadata=metadata) as generation:
            await generation.text()
            return choice_of(generation, choices)

    async def score(self, prompt: Prompt | None = None, continuations: Iterable[str] = (), *, messages: Messages | None = None,
                    tools: Objects = (), documents: Objects = (), optimization: Optimization | None = None,
                    oracle_answer: str | None = None, request_id: str = "", priority: str | int | None = None,
                    return_routed_experts: bool = False, experts_per_token: int | None = None,
                    timeout: float | None = None, metadata: MoreMetadata = ()) -> gen.ScoreResponse:
        """The log-likelihood of each continuation; answers.likeliest() finds the best. After `messages`, in place of a prompt, a
        continuation is the assistant's answer."""
        request = requests.score_request(prompt, continuations, optimization, oracle_answer, request_id, priority, messages, tools,
                                         documents, Experts(return_routed_experts, experts_per_token))
        return await self.call(methods.SCORE, request, timeout, metadata=metadata)

    async def tokenize(self, text: str, *, add_special_tokens: bool = True, timeout: float | None = None) -> gen.TokenizeResponse:
        return await self.call(methods.TOKENIZE, gen.TokenizeRequest(text=text, add_special_tokens=add_special_tokens), timeout)

    async def detokenize(self, ids: Iterable[int], *, skip_special_tokens: bool = True, timeout: float | None = None) -> str:
        request = gen.DetokenizeRequest(ids=ids, skip_special_tokens=skip_special_tokens)
        return (await self.call(methods.DETOKENIZE, request, timeout)).text

    # --- The server ---

    async def server_info(self, *, timeout: float | None = None) -> srv.GetServerInfoResponse:
        return await self.call(methods.GET_SERVER_INFO, srv.GetServerInfoRequest(), timeout)

    async def health(self, service: str = "", *, timeout: float = HEALTH_TIMEOUT) -> health.HealthStatus:
        """Of the whole server, or of one service. Not tried again."""
        return health.status_of(await self.call(health.CHECK, health.check_request(service), timeout))

    async def wait_until_serving(self, timeout: float = 60.0) -> None:
        """Returns once the server is SERVING. DeadlineExceeded after `timeout` seconds, with the last answer."""
        end, last = time.monotonic() + timeout, "nothing was asked"
        while (left := end - time.monotonic()) > 0:
            try:
                status = await self.health(timeout=min(left, HEALTH_TIMEOUT))
                if status is health.HealthStatus.SERVING:
                    return
                last = f"it is {status.name}"
            except (Unavailable, ResourceExhausted, DeadlineExceeded) as error:
                last = error.description
            await asyncio.sleep(max(0.0, min(HEALTH_PAUSE, end - time.monotonic())))
        raise self._calls.settings.error(grpc.StatusCode.DEADLINE_EXCEEDED, f"not serving within {timeout:g} s: {last}")

    async def backup(self, path: str | os.PathLike[str], *, timeout: float = ENDLESS) -> int:
        """Copies the whole reference store into a file here, which takes the place of one that is there. Its bytes. OSError."""
        with BackupFile(path) as file:
            async with self.stream(methods.BACKUP_STORE, ref.BackupStoreRequest(), timeout) as stream:
                async for response in stream:
                    file.write(response)
            return file.finish()

    # --- Requests of one's own making ---

    async def call(self, method: UnaryMethod[RequestT, ResponseT], request: RequestT, timeout: float | None = None, *,
                   metadata: MoreMetadata = ()) -> ResponseT:
        """Sends a request message: `client.call(methods.SCORE, request)`."""
        return await self._calls.with_metadata(metadata).unary(method, request, timeout, getattr(request, "request_id", ""))

    def stream(self, method: StreamMethod[RequestT, ResponseT], request: RequestT, timeout: float | None = None, *,
               metadata: MoreMetadata = ()) -> AsyncStream[ResponseT]:
        """The same for a method that answers by a stream."""
        return self._calls.with_metadata(metadata).stream(method, request, timeout, getattr(request, "request_id", ""))

    def generate_request(self, request: gen.GenerateRequest, timeout: float | None = None, *,
                         metadata: MoreMetadata = ()) -> AsyncGeneration:
        """The same for Generate, with the AsyncGeneration's conveniences."""
        return AsyncGeneration(self.stream(methods.GENERATE, request, timeout, metadata=metadata))

    async def aclose(self) -> None:
        """Cancels the calls that are open."""
        await self._calls.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()


class AsyncReferences:
    """Reference samples; AsyncClient.references."""

    def __init__(self, calls: AsyncCalls) -> None:
        self._calls = calls

    async def add(self, samples: SampleSource, *, collection: str = "default", replace: bool = False, window: int = WINDOW_MAX,
                  on_progress: OnProgress | None = None, timeout: float | None = None) -> ImportOutcome:
        """Imports samples: ReferenceSamples, or {"prompt", "answer", optional "choices", "metadata", "id"}. Adding a sample again is
        harmless. `replace`: it takes the place of the collection's references with its prompt. `on_progress` sees the counts after
        each batch. No deadline unless `timeout`. An error of the iterable is raised once what was sent is in."""
        async with self.add_stream(samples, collection=collection, replace=replace, window=window, timeout=timeout) as stream:
            return await stream.finish(on_progress)

    async def add_file(self, path: str | os.PathLike[str], *, collection: str = "default", replace: bool = False,
                       on_progress: OnProgress | None = None, timeout: float | None = None) -> ImportOutcome:
        """The same for a file of JSON lines, as `c3po refs import` reads it; the first malformed line ends it (ArgumentError)."""
        return await self.add(read_samples(path), collection=collection, replace=replace, on_progress=on_progress, timeout=timeout)

    def add_stream(self, samples: SampleSource, *, collection: str = "default", replace: bool = False, window: int = WINDOW_MAX,
                   timeout: float | None = None) -> AsyncImport:
        """The same, verdict by verdict; at most `window` samples wait for theirs. Read it to the end, or close it."""
        return AsyncImport(self._calls, samples, collection, replace, window, timeout)

    async def get(self, reference_id: str, *, include_pathway: bool = False, timeout: float | None = None) -> ref.Reference:
        request = ref.GetReferenceRequest(id=reference_id, include_pathway=include_pathway)
        return (await self._calls.unary(methods.GET, request, timeout)).reference

    async def list(self, collection: str = "", *, page_size: int | None = None,
                   timeout: float | None = None) -> AsyncIterator[ref.Reference]:
        """Of all pages, each fetched when it is reached; `timeout` is for one page. No collection: all that the caller may read."""
        request = ref.ListReferencesRequest(collection=collection, page_size=page_size)
        while True:
            page = await self._calls.unary(methods.LIST, request, timeout)
            for reference in page.references:
                yield reference
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def search(self, text: str, *, collection: str = "default", k: int | None = None, successful_only: bool | None = None,
                     min_index_generation: int | None = None, filter: Filter | None = None,
                     timeout: float | None = None) -> Sequence[ref.SearchReferencesResponse.Hit]:
        """The nearest references of a text, nearest first, of those whose metadata match the `filter`; `timeout` is for one page."""
        request = requests.search_request(collection, text, k, successful_only, min_index_generation, filter)
        hits: list[ref.SearchReferencesResponse.Hit] = []
        while True:
            page = await self._calls.unary(methods.SEARCH, request, timeout)
            hits.extend(page.hits)
            if not page.next_page_token:
                return hits
            request.page_token = page.next_page_token

    async def delete(self, ids: Iterable[str], *, timeout: float | None = None) -> ref.DeleteReferencesResponse:
        """At most 10,000. What was not there is named in `not_found`, which is no error."""
        return await self._calls.unary(methods.DELETE, requests.delete_ids_request(ids), timeout)

    async def delete_collection(self, collection: str, *, timeout: float | None = None) -> int:
        """With its profile and all else; how many references it had."""
        return (await self._calls.unary(methods.DELETE, requests.delete_collection_request(collection), timeout)).deleted

    async def stats(self, *, timeout: float | None = None) -> ref.GetStatsResponse:
        """All pages as one; `timeout` is for one page."""
        request = ref.GetStatsRequest()
        whole = await self._calls.unary(methods.GET_STATS, request, timeout)
        while whole.next_page_token:
            request.page_token = whole.next_page_token
            page = await self._calls.unary(methods.GET_STATS, request, timeout)
            whole.collections.extend(page.collections)
            whole.next_page_token = page.next_page_token
        return whole


class AsyncCollections:
    """What a collection holds beside its references; AsyncClient.collections. Learning takes minutes: it has no deadline unless
    `timeout`, is not tried again, and is cancelled when its AsyncStream is closed. Read that to the end: `.last()` has the outcome."""

    def __init__(self, calls: AsyncCalls) -> None:
        self._calls = calls

    async def get(self, collection: str = "default", *, timeout: float | None = None) -> ref.GetCollectionResponse:
        return await self._calls.unary(methods.GET_COLLECTION, ref.GetCollectionRequest(collection=collection), timeout)

    async def set_profile(self, collection: str, profile: Optimization, *, notes: str = "", timeout: float | None = None) -> None:
        """Stores what requests over the collection get that do not set a field themselves. `notes`: JSON."""
        await self._calls.unary(methods.SET_PROFILE, requests.profile_request(collection, profile, notes), timeout)

    async def clear_profile(self, collection: str, *, timeout: float | None = None) -> bool:
        """Whether there was one."""
        return (await self._calls.unary(methods.SET_PROFILE, requests.profile_request(collection, None, ""), timeout)).removed

    def tune_prior(self, collection: str, settings: TunePriorFields | None = None, *,
                   timeout: float = ENDLESS) -> AsyncStream[ref.TunePriorResponse]:
        """Learns one router shift over the collection: a message per epoch."""
        return self._calls.stream(methods.TUNE_PRIOR, tune_prior_request(collection, settings or {}), timeout)

    def amortize_shifts(self, collection: str, optimization: Optimization | None = None, *,
                        timeout: float = ENDLESS) -> AsyncStream[ref.AmortizeShiftsResponse]:
        """Finds a router shift for each reference."""
        return self._calls.stream(methods.AMORTIZE_SHIFTS, requests.amortize_request(collection, optimization), timeout)

    def tune_offset(self, collection: str, optimization: Optimization | None = None, *, max_references: int | None = None,
                    seed: int | None = None, keep: bool = False, timeout: float = ENDLESS) -> AsyncStream[ref.TuneOffsetResponse]:
        """Learns the collection's label offset, after the model alone or after `optimization`. `keep`: one that is stored under
        these settings and fits what the server holds is not learned anew."""
        request = requests.tune_offset_request(collection, optimization, max_references, seed, keep)
        return self._calls.stream(methods.TUNE_OFFSET, request, timeout)
