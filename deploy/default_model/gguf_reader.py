"""Reads a GGUF file (version 3, little endian) held in memory: its metadata, and its tensors as float32.

Layout (ggml's docs/gguf.md): magic, version, tensor count, metadata count; the metadata; per tensor a name, its
dimensions (fastest first), its type and its offset; then, from the next multiple of general.alignment on, the data.
Only the types the default model holds are read (F32, F16, Q4_1, Q8_0); any other is an error that names the tensor."""

import struct
from typing import Any, NamedTuple

import numpy as np

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LENGTH_MAX = 1 << 24  # Of a string in bytes, or an array in items: beyond, the file is damaged.

# Blocks of 32 weights, as they lie in the file.
_Q4_1 = np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("nibbles", "u1", 16)])
_Q8_0 = np.dtype([("scale", "<f2"), ("values", "i1", 32)])


class _TensorEntry(NamedTuple):
    shape: tuple[int, ...]  # Slowest dimension first, as numpy has it.
    type_id: int
    offset: int  # From the start of the file.


class GgufFile:
    """metadata: key -> number, bool, str or list of them. Tensors are decoded when asked for.

    Raises ValueError on anything that is not a whole GGUF file."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._position = 0
        self.metadata: dict[str, Any] = {}
        self._tensors: dict[str, _TensorEntry] = {}
        try:
            self._read_header()
        except (struct.error, UnicodeDecodeError) as error:
            raise ValueError(f"GGUF header, byte {self._position}: {error}") from error

    def tensor_names(self) -> list[str]:
        return list(self._tensors)

    def tensor(self, name: str) -> np.ndarray:
        """float32, in the tensor's shape. KeyError: no such tensor."""
        entry = self._tensors[name]
        count = int(np.prod(entry.shape))
        if entry.type_id == 0:
            flat = self._blocks(name, entry, np.dtype("<f4"), count)
        elif entry.type_id == 1:
            flat = self._blocks(name, entry, np.dtype("<f2"), count).astype(np.float32)
        elif entry.type_id == 3:
            # The first 16 weights of a block are the low nibbles, the next 16 the high ones; w = scale * q + minimum.
            blocks = self._blocks(name, entry, _Q4_1, count // 32)
            quants = np.concatenate([blocks["nibbles"] & 15, blocks["nibbles"] >> 4], axis=1).astype(np.float32)
            flat = quants * blocks["scale"].astype(np.float32)[:, None] + blocks["minimum"].astype(np.float32)[:, None]
        elif entry.type_id == 8:
            blocks = self._blocks(name, entry, _Q8_0, count // 32)
            flat = blocks["values"].astype(np.float32) * blocks["scale"].astype(np.float32)[:, None]
        else:
            raise ValueError(f"GGUF tensor {name}: type {entry.type_id} is not supported")
        return np.ascontiguousarray(flat.reshape(entry.shape))

    def _blocks(self, name: str, entry: _TensorEntry, dtype: np.dtype, count: int) -> np.ndarray:
        if dtype.names and entry.shape[-1] % 32:
            raise ValueError(f"GGUF tensor {name}: rows of {entry.shape[-1]} weights are not whole blocks of 32")
        if entry.offset + count * dtype.itemsize > len(self._data):
            raise ValueError(f"GGUF tensor {name}: lies beyond the end of the file")
        return np.frombuffer(self._data, dtype=dtype, count=count, offset=entry.offset)

    def _read_header(self) -> None:
        if bytes(self._data[:4]) != b"GGUF":
            raise ValueError("not a GGUF file: the magic is missing")
        self._position = 4
        version = self._scalar("I")
        if version != 3:
            raise ValueError(f"GGUF version {version} is not supported, only 3")
        tensor_count = self._scalar("Q")
        metadata_count = self._scalar("Q")
        for _ in range(metadata_count):
            key = self._string()
            self.metadata[key] = self._value(self._scalar("I"))
        entries = []
        for _ in range(tensor_count):
            name = self._string()
            dimensions = [self._scalar("Q") for _ in range(self._scalar("I"))]
            entries.append((name, tuple(reversed(dimensions)), self._scalar("I"), self._scalar("Q")))
        alignment = self.metadata.get("general.alignment", 32)
        start = -(-self._position // alignment) * alignment
        for name, shape, type_id, offset in entries:
            self._tensors[name] = _TensorEntry(shape, type_id, start + offset)

    def _scalar(self, code: str) -> Any:
        value = struct.unpack_from("<" + code, self._data, self._position)[0]
        self._position += struct.calcsize("<" + code)
        return value

    def _length(self) -> int:
        length = self._scalar("Q")
        if length > _LENGTH_MAX:
            raise ValueError(f"GGUF header, byte {self._position}: a length of {length} is not plausible")
        return length

    def _string(self) -> str:
        length = self._length()
        if self._position + length > len(self._data):
            raise ValueError(f"GGUF header, byte {self._position}: a string runs beyond the end of the file")
        text = bytes(self._data[self._position:self._position + length]).decode("utf-8")
        self._position += length
        return text

    def _value(self, type_id: int) -> Any:
        if type_id in _SCALARS:
            return self._scalar(_SCALARS[type_id])
        if type_id == _STRING:
            return self._string()
        if type_id == _ARRAY:
            item_type = self._scalar("I")
            return [self._value(item_type) for _ in range(self._length())]
        raise ValueError(f"GGUF header, byte {self._position}: metadata type {type_id} is unknown")
