"""Request messages from the arguments of Client and AsyncClient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Union

from c3po.v1 import generation_pb2 as gen
from c3po.v1 import options_pb2 as opt
from c3po.v1 import reference_pb2 as ref
from c3po_client.errors import ArgumentError
from c3po_client.options import Optimization, Sampling, enum_number, optimization_options, sampling_options

Prompt = Union[str, Sequence[int], gen.TokenIds]  # text, or token ids
Message = Union[gen.ChatMessage, Mapping[str, str], tuple[str, str]]  # of a chat; a pair is (role, content)
Messages = Union[gen.Chat, Iterable[Message]]

_PRIORITY = gen.Priority.DESCRIPTOR


def generate_request(prompt: Prompt, choices: Iterable[str], sampling: Sampling | None, optimization: Optimization | None,
                     request_id: str, priority: str | int | None) -> gen.GenerateRequest:
    request = gen.GenerateRequest(**_input(prompt))
    return _completed(request, choices, sampling, optimization, request_id, priority)


def chat_request(messages: Messages, choices: Iterable[str], sampling: Sampling | None, optimization: Optimization | None,
                 request_id: str, priority: str | int | None) -> gen.GenerateRequest:
    chat = messages if isinstance(messages, gen.Chat) else gen.Chat(messages=[_message(*each) for each in enumerate(messages)])
    request = gen.GenerateRequest(chat=chat)
    return _completed(request, choices, sampling, optimization, request_id, priority)


def score_request(prompt: Prompt, continuations: Iterable[str], optimization: Optimization | None, oracle_answer: str | None,
                  request_id: str, priority: str | int | None) -> gen.ScoreRequest:
    request = gen.ScoreRequest(**_input(prompt))
    _extend(request.continuations, "continuations", continuations)
    _options(request, optimization, request_id, priority)
    if oracle_answer is not None:
        request.oracle_answer = oracle_answer
    return request


def profile_request(collection: str, profile: Optimization | None, notes: str) -> ref.SetProfileRequest:
    """`profile` None: it is removed."""
    return ref.SetProfileRequest(collection=collection, profile=_given(profile), notes=notes)


def delete_ids_request(ids: Iterable[str]) -> ref.DeleteReferencesRequest:
    """ArgumentError: no id, which the server would take for a request without anything to delete."""
    request = ref.DeleteReferencesRequest()
    _extend(request.ids, "ids", ids)
    if not request.ids:
        raise ArgumentError("ids: is empty")
    return request


def delete_collection_request(collection: str) -> ref.DeleteReferencesRequest:
    """ArgumentError: no name."""
    if not collection:
        raise ArgumentError("collection: is empty")
    return ref.DeleteReferencesRequest(collection=collection)


def search_request(collection: str, text: str, k: int | None, successful_only: bool | None) -> ref.SearchReferencesRequest:
    request = ref.SearchReferencesRequest(collection=collection, text=text, k=k)
    if successful_only is not None:
        request.successful_only = successful_only
    return request


def amortize_request(collection: str, optimization: Optimization | None) -> ref.AmortizeShiftsRequest:
    return ref.AmortizeShiftsRequest(collection=collection, optimization=_given(optimization))


def tune_offset_request(collection: str, optimization: Optimization | None, max_references: int | None,
                        seed: int | None) -> ref.TuneOffsetRequest:
    return ref.TuneOffsetRequest(collection=collection, optimization=_given(optimization), max_references=max_references, seed=seed)


def _given(optimization: Optimization | None) -> opt.OptimizationOptions | None:
    return None if optimization is None else optimization_options(optimization)


def _completed(request: gen.GenerateRequest, choices: Iterable[str], sampling: Sampling | None, optimization: Optimization | None,
               request_id: str, priority: str | int | None) -> gen.GenerateRequest:
    _extend(request.choices, "choices", choices)
    if sampling is not None:
        request.sampling.CopyFrom(sampling_options(sampling))
    _options(request, optimization, request_id, priority)
    return request


def _options(request: gen.GenerateRequest | gen.ScoreRequest, optimization: Optimization | None, request_id: str,
             priority: str | int | None) -> None:
    if optimization is not None:
        request.optimization.CopyFrom(optimization_options(optimization))
    if request_id:
        request.request_id = request_id
    if priority is not None:
        request.priority = enum_number(_PRIORITY, "priority", priority)  # type: ignore[assignment]  # A number is an enum's value.


def _input(prompt: Prompt) -> dict[str, Any]:
    if isinstance(prompt, str):
        return {"prompt": prompt}
    if isinstance(prompt, gen.TokenIds):
        return {"token_ids": prompt}
    try:
        return {"token_ids": gen.TokenIds(ids=prompt)}
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"prompt: neither a text nor token ids: {error}") from error


def _message(index: int, message: Message) -> gen.ChatMessage:
    if isinstance(message, gen.ChatMessage):
        return message
    try:
        if isinstance(message, Mapping):
            return gen.ChatMessage(**message)
        role, content = message
        return gen.ChatMessage(role=role, content=content)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"messages[{index}]: {error}") from error


def _extend(repeated: Any, name: str, texts: Iterable[str]) -> None:
    if isinstance(texts, (str, bytes)):  # Else taken for a list of its characters.
        raise ArgumentError(f"{name}: {texts!r} is not a list")
    try:
        repeated.extend(texts)
    except TypeError as error:
        raise ArgumentError(f"{name}: {error}") from error
