"""What comes back: the events of an answer, what they add up to, the choice among continuations, pathways as rows."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Union

from google.protobuf import json_format
from google.protobuf.message import Message

from c3po.v1 import generation_pb2 as gen
from c3po_client.errors import C3poError

# One message of an answer's stream, in this order: at most one report, the prompt's routed experts in pieces where they were asked
# for, deltas, one summary. `isinstance`, or `match` with
# `case gen.TextDelta():`, tells which.
Event = Union[gen.OptimizationReport, gen.RoutedExperts, gen.TextDelta, gen.GenerationSummary]


class Answer:
    """What has come of an answer so far. `report` and `summary` are None until their event has."""

    def __init__(self) -> None:
        self.report: gen.OptimizationReport | None = None
        self.summary: gen.GenerationSummary | None = None
        self._texts: dict[int, list[str]] = {}
        self._token_ids: dict[int, list[int]] = {}
        self._prompt_routes: list[gen.RoutedExperts] = []
        self._routes: dict[int, list[gen.RoutedExperts]] = {}

    def take(self, response: gen.GenerateResponse) -> Event | None:
        """The message's event, remembered. None: of a kind that this client does not know."""
        kind = response.WhichOneof("event")
        if kind == "optimization":
            self.report = response.optimization
            return self.report
        if kind == "delta":
            delta = response.delta
            self._texts.setdefault(delta.answer, []).append(delta.text)
            self._token_ids.setdefault(delta.answer, []).extend(delta.token_ids)
            if delta.HasField("routed_experts"):
                self._routes.setdefault(delta.answer, []).append(delta.routed_experts)
            return delta
        if kind == "routed_experts":
            self._prompt_routes.append(response.routed_experts)
            return response.routed_experts
        if kind == "summary":
            self.summary = response.summary
            return self.summary
        return None

    def text_so_far(self, answer: int = 0) -> str:
        return "".join(self._texts.get(answer, []))

    def token_ids_so_far(self, answer: int = 0) -> list[int]:
        return list(self._token_ids.get(answer, []))

    def routed_experts_so_far(self, answer: int = 0) -> list[gen.RoutedExperts]:
        """Of the prompt and then of the answer, with `return_routed_experts`; routed_rows() makes a table of them."""
        return self._prompt_routes + self._routes.get(answer, [])

    def count(self) -> int:
        """Of answers: sampling.n, once the summary has come."""
        return len(self.summary.answers) if self.summary is not None and self.summary.answers else 1


@dataclasses.dataclass(frozen=True)
class Choice:
    """The answer to a request with choices."""

    index: int  # of the choices
    text: str  # choices[index]
    scores: tuple[gen.ContinuationScore, ...]  # of all, in their order
    report: gen.OptimizationReport | None
    summary: gen.GenerationSummary


def choice_of(answer: Answer, choices: Sequence[str]) -> Choice:
    """C3poError: the stream ended without a choice."""
    summary = answer.summary
    if summary is None or not summary.HasField("chosen") or summary.chosen >= len(choices):
        raise C3poError("the server ended the answer without a choice")
    return Choice(summary.chosen, choices[summary.chosen], tuple(summary.choice_scores), answer.report, summary)


def score_per_token(score: gen.ContinuationScore) -> float:
    """What continuations are compared by: the log-likelihood per token, so that a long one is not the less likely one for its
    length; with the collection's label offset where the server applied one."""
    return score.offset_score if score.HasField("offset_score") else score.log_likelihood / max(score.token_count, 1)


def likeliest(response: gen.ScoreResponse) -> int:
    """Index of the continuation that is the answer; the first of several that are equal."""
    values = [score_per_token(score) for score in response.scores]
    return values.index(max(values))


class PathwayRow(NamedTuple):
    """The mixing weight of one expert at the last prompt token."""

    layer: int  # MoE layer index
    expert: int
    before: float
    after: float


def pathway_rows(report: gen.OptimizationReport) -> Iterator[PathwayRow]:
    """The pathways of a report as a table, one row for each critical layer and expert; none unless the request had
    `return_pathways`. `csv.writer(file).writerows(...)` and pandas' `DataFrame(...)` take it as it is."""
    after = {layer.layer: layer.weights for layer in report.pathway_after}
    for layer in report.pathway_before:
        changed = after.get(layer.layer, layer.weights)  # Without a pathway after, the one before stands.
        for expert, (weight, new_weight) in enumerate(zip(layer.weights, changed)):
            yield PathwayRow(layer.layer, expert, weight, new_weight)


class RoutedRow(NamedTuple):
    """One expert of one token."""

    position: int  # of the token, in prompt and answer together
    layer: int  # MoE layer index
    rank: int  # 0: the largest weight
    expert: int
    weight: float  # that was applied


def routed_rows(pieces: Iterable[gen.RoutedExperts]) -> Iterator[RoutedRow]:
    """Routed experts as a table: of Answer.routed_experts_so_far(), ScoreResponse.routed_experts or [score.routed_experts]."""
    for piece in pieces:
        at = 0
        for token in range(piece.tokens):
            for layer in range(piece.layers):
                for rank in range(piece.experts):
                    yield RoutedRow(piece.first_position + token, layer, rank, piece.ids[at], piece.weights[at])
                    at += 1


def to_dict(message: Message) -> dict[str, Any]:
    """A message as plain values, with the names of the .proto files. Fields that are not set are there where they have a default."""
    keywords: dict[str, Any] = {"preserving_proto_field_name": True, _WITH_DEFAULTS: True}
    return dict(json_format.MessageToDict(message, **keywords))


def to_json(message: Message) -> str:
    """The same as one line of JSON: what `c3po ... --json` prints."""
    return json.dumps(to_dict(message), ensure_ascii=False)


_WITH_DEFAULTS = next(name for name in ("always_print_fields_with_no_presence", "including_default_value_fields")  # Renamed in protobuf 5.
                      if name in inspect.signature(json_format.MessageToDict).parameters)
