"""Reference samples: from plain values, and from JSON lines as `c3po refs import` reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypedDict, Union

from c3po.v1 import reference_pb2 as ref
from c3po_client.errors import ArgumentError

LINE_BYTES_MAX = 3 << 20  # gRPC servers take messages up to 4 MiB by default.


class _Needed(TypedDict):
    prompt: str
    answer: str  # the continuation, with its leading space if the format has one


class SampleFields(_Needed, total=False):
    """The fields of ReferenceSample."""

    choices: Iterable[str]
    metadata: Mapping[str, str]
    id: str


Sample = Union[ref.ReferenceSample, SampleFields]


def reference_sample(given: Sample) -> ref.ReferenceSample:
    """ArgumentError names what is missing, unknown or of another kind. Whether a sample makes sense is the server's to judge."""
    if isinstance(given, ref.ReferenceSample):
        return given
    for name in ("prompt", "answer"):
        if not isinstance(given.get(name), str):
            raise ArgumentError(f"sample.{name}: is missing or not a text")
    if isinstance(given.get("choices"), str):
        raise ArgumentError("sample.choices: is not a list")
    try:
        return ref.ReferenceSample(**given)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"sample: {error}") from error


def read_samples(path: str | os.PathLike[str]) -> Iterator[ref.ReferenceSample]:
    """One sample for each line of a file that is not blank: {"prompt", "answer", optional "choices", "metadata", "reference_id"}.
    Metadata that is not text is written as JSON; other keys are passed over. ArgumentError names file, line and key; OSError."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield _parsed(line)
                except (ValueError, TypeError, RecursionError) as error:
                    raise ArgumentError(f"{os.fspath(path)}:{number}: {error}") from error


def _parsed(line: bytes) -> ref.ReferenceSample:
    if len(line) > LINE_BYTES_MAX:
        raise ValueError(f"longer than {LINE_BYTES_MAX} bytes")
    try:
        value = json.loads(line)
    except RecursionError as error:
        raise ValueError("nests too deep") from error
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    choices, metadata = value.get("choices"), value.get("metadata")
    if not isinstance(choices, (list, type(None))) or not all(isinstance(choice, str) for choice in choices or []):
        raise ValueError('"choices" is not a list of texts')
    if not isinstance(metadata, (dict, type(None))):
        raise ValueError('"metadata" is not an object')
    return ref.ReferenceSample(
        prompt=_text(value, "prompt"), answer=_text(value, "answer"), choices=choices or [],
        metadata={key: item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) for key, item in (metadata or {}).items()},
        id=_text(value, "reference_id") if "reference_id" in value else "")


def _text(value: dict[str, Any], key: str) -> str:
    if not isinstance(value.get(key), str):
        raise ValueError(f'"{key}" is missing or not a text')
    return str(value[key])
