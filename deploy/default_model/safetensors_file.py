"""Writes and reads the safetensors format: u64 header length, JSON header, the tensors' bytes; little endian.

The bytes written depend on nothing but the arguments: tensors lie in the order given, the header is padded with spaces
to a multiple of 8. bfloat16, which numpy lacks, is uint16 with the dtype named "BF16"."""

import json
import pathlib
from typing import Iterable, NamedTuple

import numpy as np

_DTYPES = {"F32": np.dtype("<f4"), "BF16": np.dtype("<u2"), "U8": np.dtype("u1"), "I8": np.dtype("i1")}


class Tensor(NamedTuple):
    name: str
    dtype: str  # A key of _DTYPES.
    values: np.ndarray


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 -> the bits of bfloat16 as uint16, rounded to nearest, ties to even. Finite values only."""
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """The inverse, exact: uint16 bits -> float32."""
    return (bits.astype("<u4") << 16).view("<f4")


def write(path: pathlib.Path, tensors: Iterable[Tensor], metadata: dict[str, str]) -> None:
    tensors = list(tensors)
    header: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for name, dtype, values in tensors:
        if values.dtype != _DTYPES[dtype]:
            raise ValueError(f"{path.name}: {name} is {values.dtype}, which does not hold {dtype}")
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [offset, offset + values.nbytes]}
        offset += values.nbytes
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for tensor in tensors:
            file.write(np.ascontiguousarray(tensor.values).tobytes())


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """name -> array (BF16 as float32), and the metadata. ValueError names the file when it is not whole."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or 8 + length > len(data):
        raise ValueError(f"{path}: not a safetensors file, or cut short")
    header = json.loads(data[8:8 + length])
    metadata = header.pop("__metadata__", {})
    arrays = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{path}: {name} has the unsupported dtype {entry['dtype']}")
        dtype = _DTYPES[entry["dtype"]]
        begin, end = entry["data_offsets"]
        count = int(np.prod(entry["shape"], dtype=np.int64))
        if end - begin != count * dtype.itemsize or 8 + length + end > len(data):
            raise ValueError(f"{path}: {name} lies beyond the end of the file or has another size than its shape")
        values = np.frombuffer(data, dtype, count, 8 + length + begin).reshape(entry["shape"])
        arrays[name] = from_bfloat16(values) if entry["dtype"] == "BF16" else values
    return arrays, metadata
