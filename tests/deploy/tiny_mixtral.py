"""A random Mixtral of two layers as a Hugging Face folder, what its logits are, and what they have to be. Tests that import
the fixtures `folder` and `model` get one of each per file."""

import json
import pathlib
import random
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "deploy" / "evaluation"), str(ROOT / "deploy" / "default_model")]

import torch_model  # Before torch: finds it.

import torch

import safetensors_file

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, EXPERTS, NEURONS, VOCABULARY, LAYERS = 16, 4, 2, 4, 4, 6, 60, 2
CONFIG = {"architectures": ["MixtralForCausalLM"], "hidden_act": "silu", "sliding_window": None, "hidden_size": HIDDEN,
          "intermediate_size": NEURONS, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
          "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "num_local_experts": EXPERTS,
          "num_experts_per_tok": EXPERTS, "vocab_size": VOCABULARY, "rope_theta": 100.0, "rms_norm_eps": 1e-5}
SEQUENCE_LENGTHS = (1, 7, 4)


def random_weights(seed: int, own_head: bool) -> dict[str, np.ndarray]:
    """Large enough for every part to matter: routers prefer some experts, norms are not 1."""
    generator = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    if own_head:
        shapes["lm_head.weight"] = (VOCABULARY, HIDDEN)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        shapes |= {at + "input_layernorm.weight": (HIDDEN,), at + "post_attention_layernorm.weight": (HIDDEN,),
                   at + "self_attn.q_proj.weight": (HEADS * HEAD_DIM, HIDDEN),
                   at + "self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
                   at + "self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
                   at + "self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
                   at + "block_sparse_moe.gate.weight": (EXPERTS, HIDDEN)}
        for expert in range(EXPERTS):
            of = f"{at}block_sparse_moe.experts.{expert}."
            shapes |= {of + "w1.weight": (NEURONS, HIDDEN), of + "w2.weight": (HIDDEN, NEURONS),
                       of + "w3.weight": (NEURONS, HIDDEN)}
    return {name: generator.normal(1.0 if len(shape) == 1 else 0.0, 0.4, shape).astype("<f4")
            for name, shape in shapes.items()}


def write_model(folder: pathlib.Path, weights: dict[str, np.ndarray], config: dict = CONFIG) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors_file.write(folder / "model.safetensors", [
        safetensors_file.Tensor(name, "BF16", safetensors_file.to_bfloat16(values)) for name, values in weights.items()
    ], {})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_model(tmp_path_factory.mktemp("model"), random_weights(6, False))


@pytest.fixture(scope="module")
def model(folder: pathlib.Path) -> torch_model.Model:
    return torch_model.load(folder)


class Oracle:
    """Position by position, expert by expert, in double precision, from the file's own tensors."""

    def __init__(self, folder: pathlib.Path):
        arrays = safetensors_file.read(folder / "model.safetensors")[0]
        self.weights = {name: values.astype(np.float64) for name, values in arrays.items()}

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt(np.mean(x * x) + CONFIG["rms_norm_eps"]) * self.weights[name]

    @staticmethod
    def turned(x: np.ndarray, position: int) -> np.ndarray:
        """x: [head_dim]. The pair (i, i + half) is one complex number."""
        half = HEAD_DIM // 2
        angles = position * CONFIG["rope_theta"] ** (-2.0 * np.arange(half) / HEAD_DIM)
        pairs = (x[:half] + 1j * x[half:]) * np.exp(1j * angles)
        return np.concatenate([pairs.real, pairs.imag])

    def attention(self, layer: int, states: np.ndarray, prefix: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        at = f"model.layers.{layer}."
        normalized = [self.norm(state, at + "input_layernorm.weight") for state in states]
        mixed = np.zeros((len(states), HEADS, HEAD_DIM))
        for head in range(HEADS):
            group = head // (HEADS // KV_HEADS)
            of = {name: self.weights[f"{at}self_attn.{name}_proj.weight"].reshape(-1, HEAD_DIM, HIDDEN) for name in "qkv"}
            keys = [*prefix[0][:, group]] + [self.turned(of["k"][group] @ n, p) for p, n in enumerate(normalized)]
            values = [*prefix[1][:, group]] + [of["v"][group] @ n for n in normalized]
            for position, n in enumerate(normalized):
                query = self.turned(of["q"][head] @ n, position)
                seen = len(prefix[0]) + position + 1
                scores = np.exp([query @ key / np.sqrt(HEAD_DIM) for key in keys[:seen]])
                mixed[position, head] = sum(s * v for s, v in zip(scores / scores.sum(), values))
        return mixed.reshape(len(states), -1) @ self.weights[at + "self_attn.o_proj.weight"].T

    def experts(self, layer: int, state: np.ndarray) -> np.ndarray:
        at = f"model.layers.{layer}."
        n = self.norm(state, at + "post_attention_layernorm.weight")
        shares = np.exp(self.weights[at + "block_sparse_moe.gate.weight"] @ n)
        total = np.zeros(HIDDEN)
        for expert, share in enumerate(shares / shares.sum()):
            of = f"{at}block_sparse_moe.experts.{expert}."
            w1, w2, w3 = (self.weights[f"{of}{name}.weight"] for name in ("w1", "w2", "w3"))
            total += share * (w2 @ ((w1 @ n) / (1 + np.exp(-(w1 @ n))) * (w3 @ n)))
        return total

    def last_logits(self, tokens: list[int], soft_prompt: np.ndarray, prefixes: dict[int, tuple]) -> np.ndarray:
        states = np.concatenate([soft_prompt, self.weights["model.embed_tokens.weight"][tokens]])
        for layer in range(LAYERS):
            none = (np.zeros((0, KV_HEADS, HEAD_DIM)),) * 2
            states = states + self.attention(layer, states, prefixes.get(layer, none))
            states = states + np.stack([self.experts(layer, state) for state in states])
        head = self.weights.get("lm_head.weight", self.weights["model.embed_tokens.weight"])
        return head @ self.norm(states[-1], "model.norm.weight")


def random_sequences(seed: int) -> list[list[int]]:
    generator = random.Random(seed)
    return [[generator.randrange(VOCABULARY) for _ in range(length)] for length in SEQUENCE_LENGTHS]


def last_logits(model: torch_model.Model, sequences: list[list[int]], first_layer: int = 0) -> np.ndarray:
    """As one batch, [sequences, vocabulary]; the layers below first_layer sequence by sequence."""
    with torch.no_grad():
        entering = [torch_model.run_layers(model, model.embedding[torch.tensor(tokens)], [len(tokens)], range(first_layer))
                    for tokens in sequences]
        return (torch_model.final_states(model, entering, first_layer) @ model.head.T).numpy()
