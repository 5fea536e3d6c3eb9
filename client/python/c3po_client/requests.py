"""Request messages from the arguments of Client and AsyncClient."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Union

from c3po.v1 import generation_pb2 as gen
from c3po.v1 import options_pb2 as opt
from c3po.v1 import reference_pb2 as ref
from c3po_client.errors import ArgumentError
from c3po_client.options import (Filter, Form, Optimization, Sampling, enum_number, filter_message, optimization_options, sampling_options,
                                 structured_output)

Prompt = Union[str, Sequence[int], gen.TokenIds]  # text, or token ids
Message = Union[gen.ChatMessage, Mapping[str, str], tuple[str, str]]  # of a chat; a pair is (role, content)
Messages = Union[gen.Chat, Iterable[Message]]
Objects = Sequence[Union[Mapping[str, Any], str]]  # tools or documents: JSON objects, as mappings or as JSON

_PRIORITY = gen.Priority.DESCRIPTOR


class Experts(NamedTuple):
    """What a request says of the router's experts."""

    return_routed: bool = False
    per_token: int | None = None


def generate_request(prompt: Prompt, choices: Iterable[str], sampling: Sampling | None, optimization: Optimization | None,
                     request_id: str, priority: str | int | None, experts: Experts = Experts(),
                     form: Form | None = None) -> gen.GenerateRequest:
    request = gen.GenerateRequest(**_input(prompt))
    return _completed(request, choices, sampling, optimization, request_id, priority, experts, form)


def chat_request(messages: Messages, choices: Iterable[str], sampling: Sampling | None, optimization: Optimization | None,
                 request_id: str, priority: str | int | None, tools: Objects = (), documents: Objects = (),
                 experts: Experts = Experts(), form: Form | None = None) -> gen.GenerateRequest:
    request = gen.GenerateRequest(chat=chat_of(messages, tools, documents))
    return _completed(request, choices, sampling, optimization, request_id, priority, experts, form)


def chat_of(messages: Messages, tools: Objects = (), documents: Objects = ()) -> gen.Chat:
    chat = gen.Chat()
    if isinstance(messages, gen.Chat):
        chat.CopyFrom(messages)
    else:
        chat.messages.extend(_message(*each) for each in enumerate(messages))
    _extend(chat.tools_json, "tools", [_object("tools", *each) for each in enumerate(tools)])
    _extend(chat.documents_json, "documents", [_object("documents", *each) for each in enumerate(documents)])
    return chat


def score_request(prompt: Prompt | None, continuations: Iterable[str], optimization: Optimization | None, oracle_answer: str | None,
                  request_id: str, priority: str | int | None, messages: Messages | None = None, tools: Objects = (),
                  documents: Objects = (), experts: Experts = Experts()) -> gen.ScoreRequest:
    """ArgumentError: not exactly one of prompt and messages."""
    if messages is None and (tools or documents):
        raise ArgumentError(f"{'tools' if tools else 'documents'}: belong to messages")
    if prompt is not None and messages is None:
        request = gen.ScoreRequest(**_input(prompt))
    elif prompt is None and messages is not None:
        request = gen.ScoreRequest(chat=chat_of(messages, tools, documents))
    else:
        raise ArgumentError("prompt: one of prompt and messages must be given")
    _extend(request.continuations, "continuations", continuations)
    _options(request, optimization, request_id, priority, experts)
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


def search_request(collection: str, text: str, k: int | None, successful_only: bool | None,
                   min_index_generation: int | None = None, filter: Filter | None = None) -> ref.SearchReferencesRequest:
    request = ref.SearchReferencesRequest(collection=collection, text=text, k=k, min_index_generation=min_index_generation)
    if successful_only is not None:
        request.successful_only = successful_only
    if filter is not None:
        request.filter.CopyFrom(filter_message(filter))
    return request


def amortize_request(collection: str, optimization: Optimization | None) -> ref.AmortizeShiftsRequest:
    return ref.AmortizeShiftsRequest(collection=collection, optimization=_given(optimization))


def tune_offset_request(collection: str, optimization: Optimization | None, max_references: int | None,
                        seed: int | None, keep: bool = False) -> ref.TuneOffsetRequest:
    return ref.TuneOffsetRequest(collection=collection, optimization=_given(optimization), max_references=max_references, seed=seed,
                                 keep=keep)


def _given(optimization: Optimization | None) -> opt.OptimizationOptions | None:
    return None if optimization is None else optimization_options(optimization)


def _completed(request: gen.GenerateRequest, choices: Iterable[str], sampling: Sampling | None, optimization: Optimization | None,
               request_id: str, priority: str | int | None, experts: Experts, form: Form | None) -> gen.GenerateRequest:
    _extend(request.choices, "choices", choices)
    if sampling is not None:
        request.sampling.CopyFrom(sampling_options(sampling))
    if form is not None:
        request.structured_output.CopyFrom(structured_output(form))
    _options(request, optimization, request_id, priority, experts)
    return request


def _options(request: gen.GenerateRequest | gen.ScoreRequest, optimization: Optimization | None, request_id: str,
             priority: str | int | None, experts: Experts) -> None:
    if optimization is not None:
        request.optimization.CopyFrom(optimization_options(optimization))
    if experts.return_routed:
        request.return_routed_experts = True
    if experts.per_token is not None:
        try:
            request.experts_per_token = experts.per_token
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"experts_per_token: {error}") from error
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


def _object(name: str, index: int, value: Mapping[str, Any] | str) -> str:
    """JSON as it is, which the server looks into; a mapping as JSON."""
    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping):
        raise ArgumentError(f"{name}[{index}]: {value!r} is not a mapping")
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{name}[{index}]: {error}") from error


def _extend(repeated: Any, name: str, texts: Iterable[str]) -> None:
    if isinstance(texts, (str, bytes)):  # Else taken for a list of its characters.
        raise ArgumentError(f"{name}: {texts!r} is not a list")
    try:
        repeated.extend(texts)
    except TypeError as error:
        raise ArgumentError(f"{name}: {error}") from error
