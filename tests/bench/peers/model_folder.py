"""A random-weight model folder in OLMoE's shape, written without torch, and prompts whose tokens every peer agrees on."""

import json
import pathlib
import random
import re
import shutil

import numpy

SEED = 1
INIT_STD = 0.02  # As Hugging Face initializes the family.
WORD = re.compile(r"^\u0120[a-z]{2,}$")  # A word with its leading space, as byte-level vocabularies spell it.

SHAPE = {
    "architectures": ["OlmoeForCausalLM"],
    "model_type": "olmoe",
    "num_hidden_layers": 12,
    "hidden_size": 512,
    "intermediate_size": 256,
    "num_experts": 32,
    "num_experts_per_tok": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 50304,
    "max_position_embeddings": 4096,
    "norm_topk_prob": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "clip_qkv": None,
    "hidden_act": "silu",
    "initializer_range": INIT_STD,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.01,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 50279,
    "pad_token_id": 1,
    "use_cache": True,
    "torch_dtype": "bfloat16",
}


def tensor_shapes(config: dict) -> dict:
    """Name to shape of every tensor of an OLMoE checkpoint; linear layers are [out, in]."""
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    key_value = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "lm_head.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    for layer in range(config["num_hidden_layers"]):
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        shapes |= {f"model.layers.{layer}.{norm}.weight": (hidden,) for norm in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{attention}.q_proj.weight": (hidden, hidden), f"{attention}.o_proj.weight": (hidden, hidden),
                   f"{attention}.k_proj.weight": (key_value, hidden), f"{attention}.v_proj.weight": (key_value, hidden),
                   f"{attention}.q_norm.weight": (hidden,), f"{attention}.k_norm.weight": (key_value,),
                   f"{mlp}.gate.weight": (config["num_experts"], hidden)}
        for expert in range(config["num_experts"]):
            name, inner = f"{mlp}.experts.{expert}", config["intermediate_size"]
            shapes |= {f"{name}.gate_proj.weight": (inner, hidden), f"{name}.up_proj.weight": (inner, hidden),
                       f"{name}.down_proj.weight": (hidden, inner)}
    return shapes


def bfloat16_bits(values: numpy.ndarray) -> numpy.ndarray:
    """float32 rounded to the nearest bfloat16, ties to even; finite values only."""
    bits = values.astype("<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def bytes_of(shape: tuple) -> int:
    return 2 * int(numpy.prod(shape))


def write_header(file, shapes: dict) -> None:
    """The beginning of a safetensors file of bfloat16 tensors, which follow in the order of `shapes`."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + bytes_of(shape)]}
        offset += bytes_of(shape)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)


def write_weights(path: pathlib.Path, shapes: dict) -> None:
    generator = numpy.random.default_rng(SEED)
    with open(path, "wb") as file:
        write_header(file, shapes)
        for name, shape in shapes.items():
            values = numpy.ones(shape, numpy.float32) if "norm" in name else generator.standard_normal(shape, numpy.float32) * INIT_STD
            file.write(bfloat16_bits(values).tobytes())


def olmoe_shaped(cache: pathlib.Path, tokenizer: pathlib.Path, shape: dict = SHAPE) -> pathlib.Path:
    """The model folder below `cache`, made if it is not there; a run that was cut short leaves none."""
    folder = cache / "olmoe-shaped"
    if folder.exists():
        return folder
    if not tokenizer.is_file():
        raise SystemExit(f"{tokenizer}: no such tokenizer.json; give one with --tokenizer")
    partial = cache / "olmoe-shaped.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shutil.copyfile(tokenizer, partial / "tokenizer.json")
    (partial / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "pad_token": "<|padding|>",
         "model_max_length": shape["max_position_embeddings"]}, indent=2))
    (partial / "config.json").write_text(json.dumps(shape, indent=2))
    special = {name: shape[name] for name in ("eos_token_id", "pad_token_id")}
    (partial / "generation_config.json").write_text(json.dumps(special))
    write_weights(partial / "model.safetensors", tensor_shapes(shape))
    partial.rename(folder)
    return folder


def weights_bytes(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


class Prompts:
    """Random prompts of whole words that are one token each: as ids or as text, every peer sees the same tokens. A (round, use, stream)
    always gives the same prompt and no two give one, so that no cache of prefixes helps anybody."""

    def __init__(self, folder: pathlib.Path, seed: int = SEED):
        vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
        self.words = {id: " " + piece[1:] for piece, id in vocabulary.items() if WORD.match(piece)}
        self.ids = sorted(self.words)
        self.seed = seed
        if len(self.ids) < 100:
            raise SystemExit(f"{folder}/tokenizer.json: only {len(self.ids)} words of one token; a byte-level vocabulary is needed")

    def tokens(self, length: int, *key) -> list:
        return random.Random(f"{self.seed} {length} {key}").choices(self.ids, k=length)

    def text(self, tokens: list) -> str:
        return "".join(self.words[token] for token in tokens)
