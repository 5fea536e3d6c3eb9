"""Puts the GGUF files together that llama.cpp answered from (make_gguf_answers.py): models of every architecture, of every type of
weights. They are not stored. Each matrix is a sequence of chunks of 256 elements, and each chunk is one of 128 that rows.safetensors holds
in every type, as llama.cpp quantizes them. Blocks do not reach over chunks, so such a file is what llama-quantize makes of the model.

Row i of the 128, before quantization: x_j = (scrambled(256 i + j) >> 24) / 1024 - 1/8, 256 of them, which float16 and bfloat16 hold exactly. Chunk c of the tensor `name` is row (crc + (2 (crc >> 8) + 1) c + 37 (c >> 7)) mod 128, crc being crc32(name). The
embedding is 16 times as large: so are the scales of its blocks. Vectors are float32, and so are routers and the shared expert's gate.
output.weight is float16 and zero but for the rows of tokens that answers have (readouts.safetensors). Standard library only.
"""

import json
import pathlib
import struct
import zlib

HERE = pathlib.Path(__file__).resolve().parent
CHUNK, ROWS = 256, 128
ALIGNMENT = 32
# Number in the file, elements and bytes of a block, where a block's halves stand.
TYPES = {"F32": (0, 1, 4, ()), "F16": (1, 1, 2, ()), "Q4_0": (2, 32, 18, (0,)), "Q4_1": (3, 32, 20, (0, 2)), "Q5_0": (6, 32, 22, (0,)),
         "Q5_1": (7, 32, 24, (0, 2)), "Q8_0": (8, 32, 34, (0,)), "Q4_K": (12, 256, 144, (0, 2)), "Q5_K": (13, 256, 176, (0, 2)),
         "Q6_K": (14, 256, 210, (208,)), "BF16": (30, 1, 2, ())}
LARGE = ("Q6_K",)  # Of which rows of 16 times the size are stored: the scales of the small ones are subnormal.
VALUES = {"uint32": (4, "<I"), "int32": (5, "<i"), "float32": (6, "<f"), "bool": (7, "<?"), "uint64": (10, "<Q")}
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def safetensors(path):
    """(type, shape, bytes) by name."""
    content = path.read_bytes()
    begin = 8 + struct.unpack("<Q", content[:8])[0]
    header = {name: field for name, field in json.loads(content[8:begin]).items() if name != "__metadata__"}
    return {name: (field["dtype"], field["shape"], content[begin + field["data_offsets"][0]:begin + field["data_offsets"][1]])
            for name, field in header.items()}


def scrambled(number):
    """32 bits that look random."""
    for factor in (2654435761, 2246822519, 3266489917):
        number = number * factor & 0xFFFFFFFF
        number ^= number >> 15
    return number


def row_values(index):
    return [(scrambled(CHUNK * index + j) >> 24) / 1024 - 0.125 for j in range(CHUNK)]


def plain(values, kind):
    if kind == "BF16":
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    return struct.pack(f"<{len(values)}{'f' if kind == 'F32' else 'e'}", *values)


def times_16(content, kind):
    """Blocks with scales 16 times as large."""
    _, _, size, halves = TYPES[kind]
    blocks = bytearray(content)
    for start in range(0, len(blocks), size):
        for at in halves:
            struct.pack_into("<e", blocks, start + at, 16 * struct.unpack_from("<e", blocks, start + at)[0])
    return bytes(blocks)


class Rows:
    def __init__(self):
        self.stored = safetensors(HERE / "rows.safetensors")
        self.made = {}

    def of(self, kind, large):
        """Bytes of each row."""
        if (kind, large) not in self.made:
            if kind in ("F32", "F16", "BF16"):
                factor = 16 if large else 1
                rows = [plain([factor * value for value in row_values(i)], kind) for i in range(ROWS)]
            else:
                own = large and kind in LARGE
                _, shape, content = self.stored[f"{kind}.large" if own else kind]
                rows = [content[i * shape[1]:(i + 1) * shape[1]] for i in range(ROWS)]
                rows = [times_16(row, kind) for row in rows] if large and not own else rows
            self.made[kind, large] = rows
        return self.made[kind, large]


def vector(name, count):
    """Of norms in [1, 2), before experts in [2, 4); of biases in [-1/2, 1/2)."""
    crc = zlib.crc32(name.encode())
    low, width = 1.0, 1
    for part, other in (("ffn_norm", (2.0, 2)), ("bias", (-0.5, 1))):
        low, width = other if part in name else (low, width)
    return plain([low + width * ((crc + 2654435761 * i & 0xFFFFFFFF) >> 24) / 256 for i in range(count)], "F32")


def elements(shape):
    count = 1
    for size in shape:
        count *= size
    return count


def matrix(rows, name, shape, kind):
    crc = zlib.crc32(name.encode())
    known = rows.of(kind, name == "token_embd.weight")
    return b"".join(known[(crc + (2 * (crc >> 8) + 1) * c + 37 * (c >> 7)) % ROWS] for c in range(elements(shape) // CHUNK))


def output(readout, tokens, shape):
    """`readout`: the float16 rows of `tokens`."""
    size = 2 * shape[1]
    content = bytearray(size * shape[0])
    for i, token in enumerate(tokens):
        content[token * size:(token + 1) * size] = readout[i * size:(i + 1) * size]
    return bytes(content)


def text(value):
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def entry(key, kind, value):
    if kind == "string":
        return text(key) + struct.pack("<I", 8) + text(value)
    number, form = VALUES[kind]
    return text(key) + struct.pack("<I", number) + struct.pack(form, value)


def end_of_value(content, at, kind):
    """Where a value that begins at `at` ends."""
    if kind == 8:
        return at + 8 + struct.unpack_from("<Q", content, at)[0]
    if kind != 9:
        return at + SIZES[kind]
    kind, count = struct.unpack_from("<IQ", content, at)
    at += 12
    if kind != 8:
        return at + count * SIZES[kind]
    for _ in range(count):
        at = end_of_value(content, at, 8)
    return at


def tokenizer_entries(path):
    """The entries tokenizer.* of a GGUF file, as they stand there, by key."""
    content = path.read_bytes()
    count = struct.unpack_from("<Q", content, 16)[0]
    entries, at = {}, 24
    for _ in range(count):
        length = struct.unpack_from("<Q", content, at)[0]
        key = content[at + 8:at + 8 + length].decode()
        kind = struct.unpack_from("<I", content, at + 8 + length)[0]
        end = end_of_value(content, at + 12 + length, kind)
        if key.startswith("tokenizer."):
            entries[key] = content[at:end]
        at = end
    return entries


def type_of(model, kind, name, shape):
    """As llama-quantize --pure chooses: of rows that are no whole blocks of 256, a type of blocks of 32."""
    if name == "output.weight":
        return "F16"
    if len(shape) == 1 or "ffn_gate_inp" in name:
        return "F32"
    if kind in model.get("mixtures", {}):
        return model["mixtures"][kind][name]
    if TYPES[kind][1] == 256 and shape[-1] % 256 != 0:
        return {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}[kind]
    return kind


def tensors_of(model, kind, rows, readout):
    """(shape, type, bytes) by name, of `model`, an entry of answers.json, with weights of type `kind`."""
    tensors = {}
    for name, shape in model["tensors"].items():
        stored = type_of(model, kind, name, shape)
        if name == "output.weight":
            content = output(readout, model["readout_tokens"], shape)
        else:
            content = vector(name, shape[0]) if len(shape) == 1 else matrix(rows, name, shape, stored)
        tensors[name] = (shape, stored, content)
    return tensors


def write(path, model, tensors):
    own = {key: entry(key, *value) for key, value in model["metadata"].items()}
    entries = {**tokenizer_entries(HERE.parent / f"{model['vocabulary']}.vocabulary.gguf"), **own}
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(entries)) + b"".join(entries.values())
    contents, offset = [], 0
    for name, (shape, kind, content) in tensors.items():
        header += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", size) for size in reversed(shape))
        header += struct.pack("<IQ", TYPES[kind][0], offset)
        contents.append(content + bytes(-len(content) % ALIGNMENT))
        offset += len(contents[-1])
    path.write_bytes(header + bytes(-len(header) % ALIGNMENT) + b"".join(contents))
