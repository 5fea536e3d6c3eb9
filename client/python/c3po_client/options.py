"""Optimization and sampling options from plain values: `{"method": "ngd", "k": 12}` becomes an OptimizationOptions.

The names are those of proto/c3po/v1; the TypedDicts below list them for a type checker. An enum's value is its number, its name in
lower case without the prefix ("every_new_token"), or the short word of the c3po command ("every"). What is not given, or None, is
not set: the collection's profile or the server's default counts then. Ranges are the server's to judge.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict, TypeVar, Union

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from c3po.v1 import generation_pb2 as gen
from c3po.v1 import options_pb2 as opt
from c3po.v1 import reference_pb2 as ref
from c3po_client.errors import ArgumentError

MessageT = TypeVar("MessageT", bound=Message)

# Short words by the enum's name, where they are not the value's own name.
SHORT_WORDS: Mapping[str, Mapping[str, str]] = {
    "Method": {
        "mode": "mode_finding",
        "kernel": "kernel_regression",
        "ngd": "neighborhood_gradient_descent",
        "amortized": "amortized_shift",
        "prior": "collection_prior",
    },
    "ApplicationRule": {"last": "last_prompt_token", "every": "every_new_token", "shift": "router_shift"},
    "NeighborSource": {"critical": "critical_layer", "last": "last_layer"},
}


class GateFields(TypedDict, total=False):
    """The fields of GateOptions."""

    enabled: bool
    max_neighbor_distance: float
    max_base_confidence: float
    min_loss_reduction: float
    min_validation_loss_reduction: float
    min_optimized_confidence: float
    neighbor_distance_quantile: float


class RangeFields(TypedDict, total=False):
    """The fields of Filter.Range: at least one."""

    gt: float
    gte: float
    lt: float
    lte: float


# The fields of Filter.Condition: one beside the key, or `filter` alone. "in" is a word of Python's, hence no class.
ConditionFields = TypedDict("ConditionFields", {
    "key": str, "equals": str, "in": Iterable[str], "range": Union[opt.Filter.Range, RangeFields], "exists": bool,
    "filter": Union[opt.Filter, "FilterFields"]}, total=False)


class FilterFields(TypedDict, total=False):
    """The fields of Filter, lists of conditions: {"must": [{"key": "language", "equals": "en"}]}. proto/c3po/v1/options.proto says what
    they mean."""

    must: Iterable[opt.Filter.Condition | ConditionFields]
    should: Iterable[opt.Filter.Condition | ConditionFields]
    must_not: Iterable[opt.Filter.Condition | ConditionFields]


class OptimizationFields(TypedDict, total=False):
    """The fields of OptimizationOptions; proto/c3po/v1/options.proto says what they mean."""

    method: str | int
    k: int
    epsilon: float
    kernel: str | int
    bandwidth: float
    steps: int
    learning_rate: float
    critical_layers: Iterable[int]
    core_experts: int
    application_rule: str | int
    collection: str
    gate: opt.GateOptions | GateFields
    reference_selection: str | int
    objective: str | int
    step_rule: str | int
    alpha: float
    return_pathways: bool
    use_profile: bool
    use_prior: bool
    validation_neighbors: int
    step_scale: float
    exclude_reference_ids: Iterable[str]
    backtrack: bool
    prompt_positions: int
    patience: int
    preset: str | int
    use_offset: bool
    balance: bool
    trust: float
    neighbor_source: str | int
    neighborhoods: int
    min_index_generation: int
    filter: opt.Filter | FilterFields


class SamplingFields(TypedDict, total=False):
    """The fields of SamplingOptions; proto/c3po/v1/generation.proto says what they mean."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int
    max_tokens: int
    stop: Iterable[str]
    logprobs: int
    ignore_eos: bool
    n: int
    logit_bias: Mapping[int, float]


class OneOfFields(TypedDict, total=False):
    """The field of OneOfTexts."""

    texts: Iterable[str]


class FormFields(TypedDict, total=False):
    """The fields of StructuredOutput, one of which is given; proto/c3po/v1/generation.proto says what they mean."""

    json_object: bool
    json_schema: str | Mapping[str, Any]
    regex: str
    grammar: str
    one_of: gen.OneOfTexts | OneOfFields | Sequence[str]


class TunePriorFields(TypedDict, total=False):
    """The fields of TunePriorRequest but the collection."""

    critical_layers: Iterable[int]
    objective: str | int
    epochs: int
    batch_size: int
    learning_rate: float
    validation_fraction: float
    patience: int
    max_references: int
    seed: int
    successful_only: bool
    weight_decay: float
    prompt_positions: int


Optimization = Union[opt.OptimizationOptions, OptimizationFields]
Sampling = Union[gen.SamplingOptions, SamplingFields]
Form = Union[gen.StructuredOutput, FormFields]
Filter = Union[opt.Filter, FilterFields]


def optimization_options(given: Optimization) -> opt.OptimizationOptions:
    """ArgumentError names a field that is unknown or has a value of another kind, and k beside epsilon."""
    if isinstance(given, opt.OptimizationOptions):
        return given
    if given.get("k") is not None and given.get("epsilon") is not None:
        raise ArgumentError("optimization: k and epsilon exclude each other")
    return fill(opt.OptimizationOptions(), given, "optimization")


def filter_message(given: Filter) -> opt.Filter:
    """ArgumentError as optimization_options()."""
    return given if isinstance(given, opt.Filter) else fill(opt.Filter(), given, "filter")


def sampling_options(given: Sampling) -> gen.SamplingOptions:
    """ArgumentError as optimization_options()."""
    return given if isinstance(given, gen.SamplingOptions) else fill(gen.SamplingOptions(), given, "sampling")


def structured_output(given: Form) -> gen.StructuredOutput:
    """A schema may be an object, such as pydantic's model_json_schema(), and one_of a list. ArgumentError as optimization_options(),
    and where not exactly one form is given."""
    if isinstance(given, gen.StructuredOutput):
        return given
    fields: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if len(fields) != 1:
        raise ArgumentError(f"structured_output: {len(fields)} forms are given, not one")
    if isinstance(fields.get("json_schema"), Mapping):
        try:
            fields["json_schema"] = json.dumps(fields["json_schema"])
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"structured_output.json_schema: {error}") from error
    if isinstance(fields.get("one_of"), (list, tuple)):
        fields["one_of"] = {"texts": fields["one_of"]}
    return fill(gen.StructuredOutput(), fields, "structured_output")


def tune_prior_request(collection: str, settings: TunePriorFields) -> ref.TunePriorRequest:
    """ArgumentError as optimization_options()."""
    return fill(ref.TunePriorRequest(collection=collection), settings, "settings")


def enum_words(enum: EnumDescriptor) -> dict[str, int]:
    """The number of each word that stands for a value, short words first."""
    prefix = enum.values[0].name.removesuffix("UNSPECIFIED")
    names = {value.name.removeprefix(prefix).lower(): value.number for value in enum.values[1:]}
    return {**{word: names[name] for word, name in SHORT_WORDS.get(enum.name, {}).items()}, **names}


def enum_number(enum: EnumDescriptor, where: str, value: object) -> int:
    """ArgumentError: `value` is no word, name or number of the enum."""
    if isinstance(value, int) and not isinstance(value, bool) and value in enum.values_by_number:
        return value
    words = enum_words(enum)
    number = words.get(value.lower()) if isinstance(value, str) else None
    if number is None and isinstance(value, str) and value in enum.values_by_name:
        number = enum.values_by_name[value].number
    if number is None:
        raise ArgumentError(f"{where}: {value!r} is none of {', '.join(words)}")
    return number


def word_of(enum: EnumDescriptor, number: int) -> str:
    """The value's name in lower case without the prefix; of a value that this client does not know, its number."""
    value = enum.values_by_number.get(number)
    prefix = enum.values[0].name.removesuffix("UNSPECIFIED")
    return value.name.removeprefix(prefix).lower() if value is not None else str(number)


def fill(message: MessageT, given: Mapping[str, Any], where: str) -> MessageT:
    """Sets the fields that `given` names. ArgumentError, with the dotted path below `where`: no such field, or no value for it."""
    fields: Mapping[str, Any] = message.DESCRIPTOR.fields_by_name
    for name, value in given.items():
        field = fields.get(name)
        if field is None:
            raise ArgumentError(f"{where}.{name}: there is no such field; there are {', '.join(fields)}")
        if value is not None:
            _set(message, field, f"{where}.{name}", value)
    return message


def _set(message: Message, field: Any, where: str, value: Any) -> None:
    if isinstance(value, bool) and field.cpp_type != FieldDescriptor.CPPTYPE_BOOL:  # protobuf would take True for 1.
        raise ArgumentError(f"{where}: {value!r} is of another type")
    try:
        current = getattr(message, field.name)
        if field.enum_type is not None:
            setattr(message, field.name, enum_number(field.enum_type, where, value))
        elif hasattr(current, "update"):  # A map; how a descriptor says so depends on protobuf's version.
            current.update(value)
        elif hasattr(current, "extend"):
            if isinstance(value, (str, bytes)):  # Else taken for a list of its characters.
                raise TypeError(f"{value!r} is not a list")
            if field.message_type is None:
                current.extend(value)
            else:
                for index, each in enumerate(value):
                    _add(current, f"{where}[{index}]", each)
        elif field.message_type is None:
            setattr(message, field.name, value)
        elif isinstance(value, Mapping):
            current.SetInParent()
            fill(current, value, where)
        else:
            current.CopyFrom(value)
    except (TypeError, ValueError) as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(f"{where}: {error}") from error


def _add(messages: Any, where: str, value: Any) -> None:
    if isinstance(value, Mapping):
        fill(messages.add(), value, where)
    elif isinstance(value, Message):
        messages.append(value)
    else:
        raise ArgumentError(f"{where}: {value!r} is no mapping")
