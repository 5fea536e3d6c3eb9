"""Makes packed.safetensors: weights of 8 and 4 bits as PyPI's `compressed-tensors` packs them, and the numbers that it reads out of them.

For each format, "int4_32" say for 4 bits in groups of 32 columns: X.weight_packed, X.weight_scale and X.weight_shape in the layout
"pack-quantized", and X.expected, its decompression in float32. Levels are random and of the whole range, scales finite bfloat16 numbers of
both signs and many magnitudes; those of 16 columns are the same within 32, as `c3po model quantize` writes them.

Usage: python make_packed_goldens.py   (needs compressed-tensors, torch, safetensors; versions in provenance.json)
"""

import importlib.metadata
import json
import pathlib
import platform

import compressed_tensors.compressors as compressors
import safetensors.torch
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

HERE = pathlib.Path(__file__).resolve().parent
SEED = 26
FORMATS = {"int4_32": (4, 32, (5, 96)), "int8_32": (8, 32, (3, 64)), "int4_16": (4, 16, (4, 48)), "int8_16": (8, 16, (2, 48)),
           "int4_128": (4, 128, (3, 256))}


def main() -> None:
    torch.manual_seed(SEED)
    tensors = {}
    for name, (bits, group, (rows, columns)) in FORMATS.items():
        half = 1 << (bits - 1)
        levels = torch.randint(-half, half, (rows, columns), dtype=torch.int8)
        levels[0, :2] = torch.tensor([-half, half - 1])
        each = max(group, 32)
        scales = torch.exp(3 * torch.randn(rows, (columns + each - 1) // each)) * torch.sign(torch.randn(rows, 1))
        scales = scales.to(torch.bfloat16).repeat_interleave(each // group, dim=1)[:, :columns // group].contiguous()
        args = QuantizationArgs(num_bits=bits, type="int", symmetric=True, strategy="group", group_size=group)
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        packed = {f"{name}.weight_packed": compressors.pack_to_int32(levels, bits), f"{name}.weight_scale": scales,
                  f"{name}.weight_shape": torch.tensor([rows, columns])}
        state = {key.split(".")[1]: value for key, value in packed.items()}
        state["weight_scale"] = scales.float()  # The numbers are of the scales' type.
        whole = compressors.PackedQuantizationCompressor.decompress(state, scheme)["weight"]
        assert torch.equal(whole, scales.float().repeat_interleave(group, dim=1) * levels.float())
        tensors |= packed | {f"{name}.expected": whole}
    safetensors.torch.save_file(tensors, HERE / "packed.safetensors", metadata={"format": "pt"})
    versions = {"python": platform.python_version()} | {
        package: importlib.metadata.version(package) for package in ("compressed-tensors", "safetensors", "torch")}
    (HERE / "provenance.json").write_text(json.dumps(
        {"script": "tests/golden/packed/make_packed_goldens.py", "seed": SEED, "tolerance": 0, "versions": versions}, indent=1) + "\n")


if __name__ == "__main__":
    main()
