"""From --model_args to OptimizationOptions. The names are those of proto/c3po/v1/options.proto, so that every field is an
argument: `method=ngd,k=12,steps=10,critical_layers=25-29,gate=true,gate_max_base_confidence=0.9`.

An enum's value is its name in lower case without the prefix (`every_new_token`) or the short one of the c3po command
(`every`). A field of GateOptions has the prefix `gate_`; `gate` itself is `gate_enabled`.
"""

import json
import re

from google.protobuf.descriptor import FieldDescriptor

from c3po.v1 import options_pb2
from c3po_client import C3poError
from c3po_client.options import enum_number, filter_message

SHORT_NAMES = {
    "rule": "application_rule",
    "application": "application_rule",
    "selection": "reference_selection",
    "references": "reference_selection",
    "gate": "gate_enabled",
}
LAYERS_MAX = 4096  # Of a range, so that a slip of the finger does not fill the memory.
GATE_PREFIX = "gate_"

_FLOATS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)
_INTEGERS = (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64)


def optimization_from_args(args: dict):
    """An options_pb2.OptimizationOptions with the fields that `args` name, and only these.

    Values come as the harness parsed them: text, numbers, booleans, lists; None is what it makes of the word `none`.
    C3poError names an argument that is unknown, given twice under two names, or has a value of another kind; ranges are
    the server's to judge.
    """
    options = options_pb2.OptimizationOptions()
    given = {}
    for name, value in args.items():
        field_name = SHORT_NAMES.get(name, name)
        if field_name in given:
            raise C3poError(f"model_args: {given[field_name]} and {name} are the same argument")
        given[field_name] = name
        message, field = _find_field(options, field_name)
        if field is None:
            raise C3poError(f"model_args: {name} is not known; known are {', '.join(argument_names())}")
        _set_field(message, field, name, value)
    if "k" in given and "epsilon" in given:
        raise C3poError("model_args: k and epsilon exclude each other")
    if options.method == options_pb2.METHOD_ORACLE:
        raise C3poError("model_args: method=oracle needs each question's answer, which the harness does not pass to a model")
    return options


def argument_names() -> list[str]:
    options = options_pb2.OptimizationOptions.DESCRIPTOR.fields
    gate = options_pb2.GateOptions.DESCRIPTOR.fields
    return [f.name for f in options if f.name != "gate"] + ["gate"] + [GATE_PREFIX + f.name for f in gate if f.name != "enabled"]


def _find_field(options, name: str):
    if name.startswith(GATE_PREFIX):
        return options.gate, options.gate.DESCRIPTOR.fields_by_name.get(name.removeprefix(GATE_PREFIX))
    return options, options.DESCRIPTOR.fields_by_name.get(name)


def _set_field(message, field: FieldDescriptor, name: str, value) -> None:
    if field.name == "filter":
        message.filter.CopyFrom(_filter(name, value))
    elif field.name == "critical_layers":
        message.critical_layers.extend(_layers(name, value))
    elif hasattr(getattr(message, field.name), "extend"):  # Repeated; how a descriptor says so depends on protobuf's version.
        getattr(message, field.name).extend([str(item) for item in value] if isinstance(value, list) else [str(value)])
    elif field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        setattr(message, field.name, enum_number(field.enum_type, f"model_args: {name}", "none" if value is None else str(value)))
    elif field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        if not isinstance(value, bool):
            raise C3poError(f"model_args: {name}: {value!r} is neither true nor false")
        setattr(message, field.name, value)
    elif field.cpp_type in _INTEGERS:
        setattr(message, field.name, unsigned_integer(name, value))
    elif field.cpp_type in _FLOATS:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise C3poError(f"model_args: {name}: {value!r} is not a number")
        setattr(message, field.name, value)
    else:
        setattr(message, field.name, str(value))


def _filter(name: str, value):
    """A mapping, or JSON, which has commas: --model_args as a whole is JSON then."""
    try:
        return filter_message(json.loads(value) if isinstance(value, str) else value)
    except (C3poError, ValueError, AttributeError) as error:
        raise C3poError(f"model_args: {name}: {error}") from error


def unsigned_integer(name: str, value) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
        raise C3poError(f"model_args: {name}: {value!r} is not a whole number from 0 to 2^32 - 1")
    return value


def _layers(name: str, value) -> list[int]:
    """25, [25, 26], "25-29", and, since a comma ends an argument, "3+25-29" for the layer 3 and the range."""
    parts = value if isinstance(value, (list, tuple)) else re.split(r"[+,]", str(value))
    layers = []
    for part in parts:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", str(part).strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or last - first >= LAYERS_MAX or last >= 2**32:
            raise C3poError(f"model_args: {name}: {value!r} is no list of layers like 25-29, 3+25-29 or [25,26]")
        layers.extend(range(first, last + 1))
    return layers
