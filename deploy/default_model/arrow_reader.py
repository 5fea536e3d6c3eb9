"""Reads flat columns of strings and integers out of an Apache Arrow IPC stream held in memory.

Layout (Arrow columnar format, "Encapsulated message format"): messages of 0xFFFFFFFF, i32 metadata length, a
flatbuffers Message, and a body; the first holds the schema, the next ones record batches, length 0 ends the stream.
Fields of a flatbuffers table are reached through its vtable; the slot numbers below are those of Message.fbs and
Schema.fbs. What is not a flat, uncompressed column without nulls is an error that names the column."""

import struct
from typing import Any, Callable

import numpy as np

_SCHEMA, _RECORD_BATCH = 1, 3  # Message.header_type
_INT, _UTF8 = 2, 5  # Field.type_type


class _Table:
    """A flatbuffers table at `position` of `data`."""

    def __init__(self, data: bytes, position: int) -> None:
        self.data = data
        self.position = position
        self._vtable = position - struct.unpack_from("<i", data, position)[0]

    def _field(self, slot: int) -> int:
        """Position of the field, 0 when it is absent and has its default."""
        entry = 4 + 2 * slot
        if entry >= struct.unpack_from("<H", self.data, self._vtable)[0]:
            return 0
        offset = struct.unpack_from("<H", self.data, self._vtable + entry)[0]
        return self.position + offset if offset else 0

    def scalar(self, slot: int, code: str, default: Any = 0) -> Any:
        at = self._field(slot)
        return struct.unpack_from("<" + code, self.data, at)[0] if at else default

    def _target(self, slot: int) -> int:
        at = self._field(slot)
        return at + struct.unpack_from("<I", self.data, at)[0] if at else 0

    def table(self, slot: int) -> "_Table":
        return _Table(self.data, self._target(slot))

    def string(self, slot: int) -> str:
        at = self._target(slot)
        length = struct.unpack_from("<I", self.data, at)[0]
        return self.data[at + 4:at + 4 + length].decode("utf-8")

    def has(self, slot: int) -> bool:
        return self._field(slot) != 0

    def tables(self, slot: int) -> list["_Table"]:
        at = self._target(slot)
        starts = range(at + 4, at + 4 + 4 * struct.unpack_from("<I", self.data, at)[0], 4)
        return [_Table(self.data, start + struct.unpack_from("<I", self.data, start)[0]) for start in starts]

    def structs(self, slot: int, form: str) -> list[tuple]:
        at = self._target(slot)
        size, count = struct.calcsize("<" + form), struct.unpack_from("<I", self.data, at)[0]
        return [struct.unpack_from("<" + form, self.data, at + 4 + size * index) for index in range(count)]


def _integers(dtype: np.dtype) -> Callable[[list[bytes], int], list]:
    return lambda buffers, rows: np.frombuffer(buffers[1], dtype, rows).tolist()


def _strings(buffers: list[bytes], rows: int) -> list:
    bounds = np.frombuffer(buffers[1], "<i4", rows + 1)
    return [buffers[2][start:end].decode("utf-8") for start, end in zip(bounds[:-1], bounds[1:])]


def _column_reader(field: _Table) -> tuple[str, int, Callable[[list[bytes], int], list]]:
    """Name, number of buffers in a record batch, and what turns those into values."""
    name, kind = field.string(0), field.scalar(2, "B")
    if kind == _UTF8:
        return name, 3, _strings
    if kind == _INT:
        bits, signed = field.table(3).scalar(0, "i"), field.table(3).scalar(1, "?", False)
        return name, 2, _integers(np.dtype(f"<{'i' if signed else 'u'}{bits // 8}"))
    raise ValueError(f"Arrow column {name}: type {kind} is not a string or an integer")


def read_columns(data: bytes) -> dict[str, list]:
    """Column name -> its values over all record batches. ValueError: not such a stream, or cut short."""
    columns: dict[str, list] = {}
    readers: list[tuple[str, int, Callable[[list[bytes], int], list]]] = []
    position = 0
    try:
        while position + 8 <= len(data):
            marker, length = struct.unpack_from("<Ii", data, position)
            if marker != 0xFFFFFFFF:
                raise ValueError(f"Arrow stream, byte {position}: no message starts here")
            if length == 0:
                break
            root = position + 8 + struct.unpack_from("<I", data, position + 8)[0]
            message = _Table(data, root)
            body = position + 8 + length
            if body + message.scalar(3, "q") > len(data):
                raise ValueError(f"Arrow stream, byte {position}: the message is cut short")
            if message.scalar(1, "B") == _SCHEMA:
                readers = [_column_reader(field) for field in message.table(2).tables(1)]
                columns = {name: [] for name, _, _ in readers}
            elif message.scalar(1, "B") == _RECORD_BATCH:
                _read_batch(message.table(2), readers, data[body:], columns)
            position = body + message.scalar(3, "q")
        else:
            raise ValueError(f"Arrow stream, byte {position}: the end marker is missing")
    except (struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"Arrow stream, byte {position}: {error}") from error
    if not columns:
        raise ValueError("Arrow stream: no schema")
    return columns


def _read_batch(batch: _Table, readers: list, body: bytes, columns: dict[str, list]) -> None:
    if batch.has(3):
        raise ValueError("Arrow stream: compressed record batches are not supported")
    rows = batch.scalar(0, "q")
    buffers = [body[offset:offset + length] for offset, length in batch.structs(2, "qq")]
    for (name, count, read), (_, null_count) in zip(readers, batch.structs(1, "qq"), strict=True):
        if null_count:
            raise ValueError(f"Arrow column {name}: {null_count} values are missing")
        columns[name].extend(read(buffers[:count], rows))
        buffers = buffers[count:]
