"""Makes blocks.gguf and blocks.expected.safetensors: what PyPI's `gguf` reads out of blocks of every type that c3po takes.

blocks.gguf, written by gguf.GGUFWriter, has one tensor of each type, named after it: [3, 512], of random bytes where the
type has blocks, with scales that are finite halves of all magnitudes, subnormal ones included. Beside it stand metadata
of every type. blocks.expected.safetensors holds gguf.quants.dequantize of each tensor, in float32.

Usage: python make_gguf_goldens.py   (needs gguf, numpy, safetensors; versions in provenance.json)
"""

import importlib.metadata
import json
import pathlib
import platform

import gguf
import numpy
import safetensors.numpy

HERE = pathlib.Path(__file__).resolve().parent
SEED = 26
SHAPE = (3, 512)
# Bytes at which each block's halves stand.
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}


def random_halves(random, count):
    """Of any exponent but that of infinity and NaN."""
    bits = random.integers(0, 1 << 16, count, dtype=numpy.uint16)
    return numpy.where((bits & 0x7C00) == 0x7C00, bits & 0xBFFF, bits).astype(numpy.uint16)


def random_blocks(random, name):
    kind = gguf.GGMLQuantizationType[name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    count = SHAPE[0] * SHAPE[1] // block
    blocks = random.integers(0, 256, (count, size), dtype=numpy.uint8)
    for at in HALVES[name]:
        blocks[:, at:at + 2] = random_halves(random, count).view(numpy.uint8).reshape(count, 2)
    return blocks.reshape(SHAPE[0], -1)


def main():
    random = numpy.random.default_rng(SEED)
    writer = gguf.GGUFWriter(HERE / "blocks.gguf", "none")
    writer.add_uint8("t.uint8", 200)
    writer.add_int8("t.int8", -100)
    writer.add_uint16("t.uint16", 60000)
    writer.add_int16("t.int16", -30000)
    writer.add_uint32("t.uint32", 4000000000)
    writer.add_int32("t.int32", -2000000000)
    writer.add_uint64("t.uint64", 1 << 62)
    writer.add_int64("t.int64", -(1 << 62))
    writer.add_float32("t.float32", 1e-5)
    writer.add_float64("t.float64", 0.5)
    writer.add_bool("t.bool", True)
    writer.add_string("t.string", "Grüße")
    writer.add_array("t.strings", ["a", "bc", "ü"])
    writer.add_array("t.integers", [3, -1, 2])
    writer.add_array("t.floats", [0.25, -1.5])
    expected = {}

    def add(name, stored):
        kind = gguf.GGMLQuantizationType[name]
        plain = name in ("F32", "F16")
        writer.add_tensor(name, stored, raw_dtype=None if plain else kind)
        expected[name] = numpy.ascontiguousarray(gguf.quants.dequantize(stored, kind), dtype=numpy.float32)
        assert expected[name].shape == SHAPE and numpy.isfinite(expected[name]).all()

    add("F32", random.standard_normal(SHAPE, dtype=numpy.float32))
    add("F16", random_halves(random, SHAPE[0] * SHAPE[1]).view(numpy.float16).reshape(SHAPE))
    wide = random.standard_normal(SHAPE, dtype=numpy.float32)
    add("BF16", gguf.quants.quantize(wide, gguf.GGMLQuantizationType.BF16))
    for name in HALVES:
        add(name, random_blocks(random, name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    safetensors.numpy.save_file(expected, HERE / "blocks.expected.safetensors")
    versions = {name: importlib.metadata.version(name)
                for name in ("gguf", "numpy", "protobuf", "safetensors", "sentencepiece", "torch", "transformers")}
    provenance = {"scripts": sorted(f"tests/golden/gguf/{path.name}" for path in HERE.glob("make_*.py")), "seed": SEED, "tolerance": 0,
                  "versions": {"python": platform.python_version(), **versions, "llama.cpp": "of the sdist of llama-cpp-python 0.3.36"}}
    (HERE / "provenance.json").write_text(json.dumps(provenance, indent=1) + "\n")


if __name__ == "__main__":
    main()
