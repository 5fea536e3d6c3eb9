"""Reads columns of strings, integers and lists of strings out of an Apache Arrow IPC stream held in memory.

deploy/default_model/arrow_reader.py reads flat columns; benchmarks keep their choices in lists (Schema.fbs: Type.List
is 12; a list column has two nodes and five buffers: its validity and offsets, then those of its strings and their
bytes). A column of another type is an error that names it, and so are missing values in a column that was asked for."""

import struct
from typing import Any, Collection

import numpy as np

import arrow_reader

_SCHEMA, _RECORD_BATCH = 1, 3  # Message.header_type
_UTF8, _LIST = 5, 12  # Field.type_type
Table = arrow_reader._Table  # The flatbuffers reader; a sibling tool of the same recipe.


class _Column:
    """A column of the schema: how many nodes and buffers it takes of a record batch, and what reads them."""

    def __init__(self, field: Table) -> None:
        self.name = field.string(0)
        self._kind = field.scalar(2, "B")
        if self._kind == _LIST:
            child = field.tables(5)[0]
            if child.scalar(2, "B") != _UTF8:
                raise ValueError(f"Arrow column {self.name}: not a list of strings")
            self.nodes, self.buffers, self._read = 2, 5, self._lists
        else:
            _, self.buffers, read = arrow_reader._column_reader(field)
            self.nodes, self._read = 1, read

    @staticmethod
    def _lists(buffers: list[bytes], rows: int) -> list:
        bounds = np.frombuffer(buffers[1], "<i4", rows + 1)
        strings = arrow_reader._strings(buffers[2:], int(bounds[-1]))
        return [strings[start:end] for start, end in zip(bounds[:-1], bounds[1:])]

    def values(self, nodes: list[tuple], buffers: list[bytes]) -> list:
        if any(null_count for _, null_count in nodes):
            raise ValueError(f"Arrow column {self.name}: values are missing")
        return self._read(buffers, nodes[0][0])


def _read_batch(batch: Table, schema: list[_Column], body: bytes, columns: dict[str, list]) -> None:
    if batch.has(3):
        raise ValueError("Arrow stream: compressed record batches are not supported")
    nodes, buffers = batch.structs(1, "qq"), batch.structs(2, "qq")
    for column in schema:
        own = [body[offset:offset + length] for offset, length in buffers[:column.buffers]]
        if column.name in columns:
            columns[column.name].extend(column.values(nodes[:column.nodes], own))
        nodes, buffers = nodes[column.nodes:], buffers[column.buffers:]


def read_columns(data: bytes, wanted: Collection[str]) -> dict[str, list[Any]]:
    """Name -> values over all record batches, of the wanted columns. ValueError: not such a stream, or cut short, or a
    wanted column is not there."""
    schema: list[_Column] = []
    columns: dict[str, list] = {}
    position = 0
    try:
        while True:
            marker, length = struct.unpack_from("<Ii", data, position)
            if marker != 0xFFFFFFFF:
                raise ValueError(f"Arrow stream, byte {position}: no message starts here")
            if length == 0:
                break
            message = Table(data, position + 8 + struct.unpack_from("<I", data, position + 8)[0])
            body, end = position + 8 + length, position + 8 + length + message.scalar(3, "q")
            if end > len(data):
                raise ValueError(f"Arrow stream, byte {position}: the message is cut short")
            if message.scalar(1, "B") == _SCHEMA:
                schema = [_Column(field) for field in message.table(2).tables(1)]
                columns = {column.name: [] for column in schema if column.name in wanted}
            elif message.scalar(1, "B") == _RECORD_BATCH:
                _read_batch(message.table(2), schema, data[body:end], columns)
            position = end
    except (struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"Arrow stream, byte {position}: {error}") from error
    if missing := set(wanted) - set(columns):
        raise ValueError(f"Arrow stream: no column {', '.join(sorted(missing))}")
    return columns
