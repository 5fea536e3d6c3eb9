"""The default model in torch, float32, for what the server does not do: weights that learn. It reads config.json and
model.safetensors itself (MixtralForCausalLM, all experts active) and shares no code with c3pod.

A batch is sequences laid end to end, [tokens, hidden], so that nothing is padded: products go over all tokens at once,
attention over each sequence by itself. Layer l maps x to y and y to the next x:
  n = rms(x, input_norm)   y = x + output softmax(rope(query n) rope(key n)^T / sqrt(head_dim), causal) (value n)
  n = rms(y, post_norm)    x = y + sum_e softmax(router n)_e down_e (silu(gate_e n) * (up_e n))
and a token's logit is <rms(x, final_norm), its row of head>. rms(x, w) = w x / sqrt(mean(x^2) + rms_eps); rope turns
the pair (i, i + head_dim / 2) at position p by p rope_theta^(-2 i / head_dim).

Two things may stand before every sequence, both of length 0 in the model as it is:
  soft_prompt   rows before the embeddings; the sequence's positions start after them
  prefixes      keys and values of a layer, seen by every position; the sequence's positions do not move, and the keys
                are not turned, which is where position 0 would put them"""

import importlib.util
import json
import pathlib
import re
import sys
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "default_model"))

import pypi_package
import safetensors_file


def _find_torch() -> None:
    """Makes `import torch` find the newest that deploy/install_deps.sh unpacked, unless there is one already."""
    if importlib.util.find_spec("torch"):
        return
    sites = sorted(pypi_package.cache_dir().glob("torch-*/site"),
                   key=lambda site: [int(part) for part in re.findall(r"\d+", site.parent.name)])
    if not sites:
        raise ModuleNotFoundError(f"no torch in {pypi_package.cache_dir()}: deploy/install_deps.sh puts it there")
    sys.path.append(str(sites[-1]))


_find_torch()

import torch
import torch.nn.functional as F


class Shape(NamedTuple):
    layers: int
    hidden: int
    heads: int
    kv_heads: int  # Divides heads; head h reads key and value h // (heads / kv_heads).
    head_dim: int
    experts: int  # All active.
    neurons: int  # Of one expert.
    vocabulary: int
    rope_theta: float
    rms_eps: float


class Layer(NamedTuple):
    """Weights of one layer. Experts lie one after the other: rows of gate and up, columns of down."""

    input_norm: torch.Tensor  # [hidden]
    query: torch.Tensor  # [heads * head_dim, hidden]
    key: torch.Tensor  # [kv_heads * head_dim, hidden]
    value: torch.Tensor  # [kv_heads * head_dim, hidden]
    output: torch.Tensor  # [hidden, heads * head_dim]
    post_norm: torch.Tensor  # [hidden]
    router: torch.Tensor  # [experts, hidden]
    gate: torch.Tensor  # [experts * neurons, hidden]
    up: torch.Tensor  # [experts * neurons, hidden]
    down: torch.Tensor  # [hidden, experts * neurons]


class Prefix(NamedTuple):
    keys: torch.Tensor  # [length, kv_heads, head_dim]
    values: torch.Tensor  # [length, kv_heads, head_dim]


class Model(NamedTuple):
    shape: Shape
    embedding: torch.Tensor  # [vocabulary, hidden]
    layers: list[Layer]
    final_norm: torch.Tensor  # [hidden]
    head: torch.Tensor  # [vocabulary, hidden]
    soft_prompt: torch.Tensor  # [length, hidden]
    prefixes: dict[int, Prefix]  # By layer; a layer that is not there has none.


def read_shape(path: pathlib.Path) -> Shape:
    """From config.json. ValueError names the file and the field that is missing or says what is not computed here."""
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    try:
        wanted = {"architectures": ["MixtralForCausalLM"], "hidden_act": "silu", "sliding_window": None,
                  "num_experts_per_tok": config["num_local_experts"], "rope_scaling": None}
        for field, value in wanted.items():
            if config.get(field) != value:
                raise ValueError(f"{path}: {field} is {config.get(field)}; only {value} is computed here")
        return Shape(
            layers=config["num_hidden_layers"], hidden=config["hidden_size"], heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
            experts=config["num_local_experts"], neurons=config["intermediate_size"], vocabulary=config["vocab_size"],
            rope_theta=config["rope_theta"], rms_eps=config["rms_norm_eps"])
    except KeyError as error:
        raise ValueError(f"{path}: has no {error.args[0]}") from error


class _Weights:
    """Tensors of model.safetensors, each taken once and checked."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._arrays: dict[str, np.ndarray] = safetensors_file.read(path)[0]

    def has(self, name: str) -> bool:
        return name in self._arrays

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """float32. ValueError names the file and the tensor."""
        if name not in self._arrays:
            raise ValueError(f"{self._path}: has no {name}")
        values = self._arrays.pop(name)
        if values.shape != shape:
            raise ValueError(f"{self._path}: {name} has shape {list(values.shape)}, expected {list(shape)}")
        return torch.tensor(values, dtype=torch.float32)


def _load_layer(weights: _Weights, shape: Shape, layer: int) -> Layer:
    prefix = f"model.layers.{layer}."
    hidden, queries, keys = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim

    def experts(name: str, axis: int, *dimensions: int) -> torch.Tensor:
        return torch.cat([weights.take(f"{prefix}block_sparse_moe.experts.{expert}.{name}.weight", *dimensions)
                          for expert in range(shape.experts)], axis)

    return Layer(
        input_norm=weights.take(prefix + "input_layernorm.weight", hidden),
        query=weights.take(prefix + "self_attn.q_proj.weight", queries, hidden),
        key=weights.take(prefix + "self_attn.k_proj.weight", keys, hidden),
        value=weights.take(prefix + "self_attn.v_proj.weight", keys, hidden),
        output=weights.take(prefix + "self_attn.o_proj.weight", hidden, queries),
        post_norm=weights.take(prefix + "post_attention_layernorm.weight", hidden),
        router=weights.take(prefix + "block_sparse_moe.gate.weight", shape.experts, hidden),
        gate=experts("w1", 0, shape.neurons, hidden), up=experts("w3", 0, shape.neurons, hidden),
        down=experts("w2", 1, hidden, shape.neurons))


def load(folder: pathlib.Path) -> Model:
    """ValueError or OSError names the file, and the field or tensor."""
    shape = read_shape(folder / "config.json")
    weights = _Weights(folder / "model.safetensors")
    embedding = weights.take("model.embed_tokens.weight", shape.vocabulary, shape.hidden)
    head = embedding
    if weights.has("lm_head.weight"):
        head = weights.take("lm_head.weight", shape.vocabulary, shape.hidden)
    return Model(shape, embedding, [_load_layer(weights, shape, layer) for layer in range(shape.layers)],
                 weights.take("model.norm.weight", shape.hidden), head, torch.zeros(0, shape.hidden), {})


def _rms(model: Model, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, (model.shape.hidden,), weight, model.shape.rms_eps)


def _rope(model: Model, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of each token's angles, [tokens, 1, head_dim / 2]."""
    pairs = torch.arange(0, model.shape.head_dim, 2, dtype=torch.float64) / model.shape.head_dim
    positions = torch.cat([torch.arange(length, dtype=torch.float64) for length in lengths])
    angles = torch.outer(positions, model.shape.rope_theta ** -pairs).unsqueeze(1)
    return angles.cos().float(), angles.sin().float()


def _turn(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def projections(model: Model, layer: int, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries [tokens, heads, head_dim], keys and values [tokens, kv_heads, head_dim] of a layer, not turned yet."""
    shape, weights = model.shape, model.layers[layer]
    normalized = _rms(model, hidden, weights.input_norm)
    return ((normalized @ weights.query.T).view(-1, shape.heads, shape.head_dim),
            (normalized @ weights.key.T).view(-1, shape.kv_heads, shape.head_dim),
            (normalized @ weights.value.T).view(-1, shape.kv_heads, shape.head_dim))


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, prefix: Prefix | None) -> torch.Tensor:
    """Of one sequence, [tokens, heads, head_dim]."""
    mask = None
    if prefix is not None:
        mask = torch.ones(len(key), len(prefix.keys) + len(key), dtype=torch.bool).tril(len(prefix.keys))
        key, value = torch.cat([prefix.keys, key]), torch.cat([prefix.values, value])
    group = query.shape[1] // key.shape[1]
    heads_first = [x.transpose(0, 1).unsqueeze(0)
                   for x in (query, key.repeat_interleave(group, 1), value.repeat_interleave(group, 1))]
    attended = F.scaled_dot_product_attention(*heads_first, attn_mask=mask, is_causal=mask is None)
    return attended.squeeze(0).transpose(0, 1)


def _experts(model: Model, layer: int, hidden: torch.Tensor) -> torch.Tensor:
    weights = model.layers[layer]
    normalized = _rms(model, hidden, weights.post_norm)
    mixing = torch.softmax(normalized @ weights.router.T, dim=-1).unsqueeze(-1)  # [tokens, experts, 1]
    neurons = F.silu(normalized @ weights.gate.T) * (normalized @ weights.up.T)
    return (neurons.view(-1, model.shape.experts, model.shape.neurons) * mixing).flatten(1) @ weights.down.T


def run_layers(model: Model, hidden: torch.Tensor, lengths: list[int], layers: range) -> torch.Tensor:
    """From the states that enter the first of `layers` to those that leave the last, [tokens, hidden]. The soft prompt
    is not put before them: `final_states` does that."""
    rope = _rope(model, lengths)
    for layer in layers:
        query, key, value = projections(model, layer, hidden)
        query, key = _turn(query, *rope), _turn(key, *rope)
        attended = torch.cat([_attend(*sequence, model.prefixes.get(layer)) for sequence in
                              zip(query.split(lengths), key.split(lengths), value.split(lengths))])
        hidden = hidden + attended.flatten(1) @ model.layers[layer].output.T
        hidden = hidden + _experts(model, layer, hidden)
    return hidden


def final_states(model: Model, sequences: list[torch.Tensor], first_layer: int) -> torch.Tensor:
    """The normalized state at the last position of each sequence, [sequences, hidden]; its product with a row of `head`
    is that token's logit. sequences: states that enter first_layer, each [tokens >= 1, hidden]; for first_layer 0 they
    are embeddings, and the soft prompt goes before each."""
    if first_layer == 0:
        sequences = [torch.cat([model.soft_prompt, sequence]) for sequence in sequences]
    lengths = [len(sequence) for sequence in sequences]
    hidden = run_layers(model, torch.cat(sequences), lengths, range(first_layer, model.shape.layers))
    return _rms(model, hidden[torch.tensor(lengths).cumsum(0) - 1], model.final_norm)
