#!/usr/bin/env python3
"""Builds the default model: an ordinary Hugging Face folder of MixtralForCausalLM, 30 layers of 32 experts, made from
SmolLM2-135M-Instruct by the carving in this folder (README.md tells how and why). Needs Python 3.11 and numpy.

  build.py [FOLDER]   prints the folder; default $C3PO_CACHE_DIR/models/smollm2-135m-moe

The package with the source is fetched by pip into $C3PO_CACHE_DIR/downloads (default ~/.cache/c3po). The folder appears
whole or not at all; one that is there already and whole is kept. The same bytes come out on every machine."""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Iterator

import carving
import dense_source
import gguf_reader
import pypi_package
import safetensors_file
import tokenizer_files
from pypi_package import say

# sha256 of every file of the folder; a change of recipe changes them, and with them the model's digest everywhere.
EXPECTED_SHA256: dict[str, str] = {
    "config.json": "2b96358d00f5d69e95ccd9b1097332dc48e5e4f77dc113e928f4a3eddb549e6b",
    "generation_config.json": "ffa48c7b9e09f752f9590f0efad54574d60ae260de22dd9106585b84131b7e6f",
    "model.safetensors": "fc58a940ea0735a2c597a7f8206b1fc7efaad0d32e51b98cd71ae8cb44461290",
    "tokenizer.json": "e7ceee39a709dc7134489c4b60bfc67f99c9e97db57c5e02f5aac9fd2393db1f",
    "tokenizer_config.json": "3f3d28e90b9708ad63a07d32e31973565f4e1fe240bd24dd324345a9c7c1181c",
}


def default_folder() -> pathlib.Path:
    return pypi_package.cache_dir() / "models" / "smollm2-135m-moe"


def is_whole(folder: pathlib.Path) -> bool:
    return all((folder / name).is_file() and pypi_package.sha256_of(folder / name) == digest
               for name, digest in EXPECTED_SHA256.items())


def model_config(source: gguf_reader.GgufFile) -> dict[str, object]:
    shape = dense_source.shape_of(source)
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.neurons // carving.EXPERTS,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden // shape.heads,
        "num_local_experts": carving.EXPERTS,
        "num_experts_per_tok": carving.EXPERTS,
        "hidden_act": "silu",
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.rms_eps,
        "rope_theta": shape.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.0,
        "router_jitter_noise": 0.0,
        "use_cache": True,
        "bos_token_id": source.metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": source.metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": source.metadata["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "bfloat16",
    }


def model_tensors(source: gguf_reader.GgufFile, carved: carving.Carving) -> Iterator[safetensors_file.Tensor]:
    """Every weight in bfloat16, under the names of transformers' MixtralForCausalLM."""
    def bfloat16(name: str, values) -> safetensors_file.Tensor:
        return safetensors_file.Tensor(name, "BF16", safetensors_file.to_bfloat16(values))

    shape = dense_source.shape_of(source)
    for name, values in dense_source.outer_weights(source).items():
        yield bfloat16(name, values)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        dense = dense_source.layer_weights(source, shape, layer)
        for name, values in dense.items():
            if not name.startswith("mlp."):
                yield bfloat16(prefix + name, values)
        yield bfloat16(prefix + "block_sparse_moe.gate.weight", carved.router[layer])
        for name, values in carving.expert_weights(dense, carved.assignment[layer]).items():
            yield bfloat16(f"{prefix}block_sparse_moe.{name}", values)
        if (layer + 1) % 10 == 0:
            say(f"layers carved: {layer + 1} of {shape.layers}")


def write_json(path: pathlib.Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def write_model(folder: pathlib.Path, source: gguf_reader.GgufFile) -> None:
    """Writes the five files into `folder`, which exists."""
    shape = dense_source.shape_of(source)
    carved = carving.load(carving.FILE, shape.layers, shape.neurons, shape.hidden)
    write_json(folder / "config.json", model_config(source))
    write_json(folder / "generation_config.json", {
        "bos_token_id": source.metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": source.metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": source.metadata["tokenizer.ggml.padding_token_id"],
        "do_sample": False,
    })
    write_json(folder / "tokenizer.json", tokenizer_files.tokenizer(source.metadata))
    write_json(folder / "tokenizer_config.json", tokenizer_files.tokenizer_config(source.metadata))
    safetensors_file.write(folder / "model.safetensors", model_tensors(source, carved), {"format": "pt"})


def _replace(folder: pathlib.Path, partial: pathlib.Path) -> None:
    """Moves `partial` to `folder`. What lies there is removed only when it can be an older or damaged build: a folder
    with no other files than the ones written here."""
    if folder.exists():
        if not folder.is_dir():
            raise ValueError(f"{folder}: exists and is not a folder")
        strangers = sorted({entry.name for entry in folder.iterdir()} - set(EXPECTED_SHA256))
        if strangers:
            raise ValueError(f"{folder}: exists and holds {strangers[0]}, which is not of this model; name another")
        say(f"{folder}: is not what this recipe makes, replacing it")
        shutil.rmtree(folder)
    os.replace(partial, folder)


def build(folder: pathlib.Path, downloads: pathlib.Path) -> None:
    """Makes `folder` unless it is there and whole. ValueError: a download or a built file has another digest than
    recorded; the folder is then left as it was."""
    if is_whole(folder):
        say(f"{folder}: present")
        return
    source = dense_source.open_source(downloads)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        say(f"building {folder}")
        write_model(partial, source)
        for name, digest in EXPECTED_SHA256.items():
            if (built := pypi_package.sha256_of(partial / name)) != digest:
                raise ValueError(f"{name}: sha256 is {built}, expected {digest}")
        partial.chmod(0o755)
        _replace(folder, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Builds the default model's folder and prints its path.")
    parser.add_argument("folder", nargs="?", type=pathlib.Path, default=default_folder())
    arguments = parser.parse_args()
    try:
        build(arguments.folder, pypi_package.cache_dir() / "downloads")
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 1
    print(arguments.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
