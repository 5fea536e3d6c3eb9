"""Makes the tiny random models of tests/golden/model and what transformers computes with them; what deepseek_numpy.py does
where transformers has no class.

Each model is an ordinary Hugging Face folder (config.json, model.safetensors in float32, tokenizer.json over the 256
bytes). Beside them, golden.safetensors holds, for prompts p = 0, 1, 2 of T = 1, 7, 33 tokens (L layers, d hidden width,
E experts, V vocabulary; MoE layers are numbered m = 0, 1, ... from the bottom):
  prompt{p}.ids                  int32   [T]
  prompt{p}.hidden.{l}           float32 [T, d]  input of layer l for l < L; output of the last layer for l = L
  prompt{p}.final_norm           float32 [T, d]  after the final RMSNorm, the input of the LM head
  prompt{p}.router_logits.{m}    float32 [T, E]  before softmax
  prompt{p}.logits               float32 [T, V]
  prompt{p}.greedy               int32   [64]    argmax continuation; the end-of-text token does not stop it
  prompt{p}.greedy_margin        float32 [64]    largest logit minus the second largest, at each of these steps
  prompt{p}.bfloat16.logits, prompt{p}.bfloat16.greedy, prompt{p}.bfloat16.greedy_margin
                                 the same with weights and arithmetic in bfloat16 (deepseek_numpy.py: weights only);
                                 logits bfloat16, margin float32
Every forward runs the whole sequence without a cache, with eager attention, on the CPU.

Seeds are tried in order until one keeps greedy decoding away from ties, so that float32 rounding cannot change it.

Usage: python make_model_goldens.py [NAME...]   (all models without a name; needs torch, transformers, safetensors, numpy;
versions in provenance.json)
"""

import json
import math
import pathlib
import platform
import sys
import types

import numpy
import safetensors
import safetensors.torch
import torch
import transformers

import deepseek_numpy

HERE = pathlib.Path(__file__).resolve().parent
PROMPTS = ["Q", "Answer:", "Question: how many legs has a cat"]
GREEDY_TOKENS = 64
SPECIAL_TOKENS = ["<|endoftext|>", "<|pad|>", "<|user|>", "<|assistant|>"]
VOCABULARY = 256 + len(SPECIAL_TOKENS)
INIT_STD = 0.25
NORM_STD = 0.1
LOGIT_MARGIN_MIN = 5e-4   # In units of the logits' standard deviation.
ROUTER_MARGIN_MIN = 5e-5  # In units of the router logits' standard deviation.
DISTINCT_TOKENS_MIN = 8  # A greedy continuation that repeats one token would test little.

COMMON = dict(
    vocab_size=VOCABULARY,
    num_hidden_layers=4,
    num_attention_heads=4,
    max_position_embeddings=256,
    rope_theta=10000.0,
    rms_norm_eps=1e-5,
    bos_token_id=None,
    eos_token_id=256,
    pad_token_id=257,
    attention_dropout=0.0,
)
MODELS = {
    "olmoe_tiny": (
        transformers.OlmoeConfig,
        dict(hidden_size=64, num_key_value_heads=4, intermediate_size=20, num_experts=16, num_experts_per_tok=4,
             norm_topk_prob=False, tie_word_embeddings=False),
    ),
    "mixtral_tiny": (
        transformers.MixtralConfig,
        dict(hidden_size=64, num_key_value_heads=2, intermediate_size=20, num_local_experts=8, num_experts_per_tok=2,
             sliding_window=None, tie_word_embeddings=True),
    ),
    "mixtral_dense_tiny": (
        transformers.MixtralConfig,
        dict(hidden_size=32, num_key_value_heads=2, intermediate_size=12, num_local_experts=8, num_experts_per_tok=8,
             sliding_window=None, tie_word_embeddings=True),
    ),
    # A dense layer between MoE layers, a gated shared expert, biases of q, k and v, stretched positions.
    "qwen2_moe_tiny": (
        transformers.Qwen2MoeConfig,
        dict(hidden_size=32, num_hidden_layers=5, num_key_value_heads=2, intermediate_size=40, moe_intermediate_size=12,
             shared_expert_intermediate_size=20, num_experts=12, num_experts_per_tok=3, norm_topk_prob=False,
             decoder_sparse_step=1, mlp_only_layers=[2], tie_word_embeddings=False,
             rope_scaling={"rope_type": "linear", "factor": 2.0}),
    ),
    # Heads wider than hidden_size / heads, each normalized; YaRN with its default temperature.
    "qwen3_moe_tiny": (
        transformers.Qwen3MoeConfig,
        dict(hidden_size=32, head_dim=12, num_key_value_heads=2, intermediate_size=40, moe_intermediate_size=12,
             num_experts=12, num_experts_per_tok=4, norm_topk_prob=True, tie_word_embeddings=True,
             rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
    ),
    "deepseek_tiny": (
        dict,
        dict(hidden_size=32, num_hidden_layers=5, num_key_value_heads=4, intermediate_size=40, moe_intermediate_size=10,
             n_routed_experts=16, n_shared_experts=2, num_experts_per_tok=4, first_k_dense_replace=1, moe_layer_freq=1,
             norm_topk_prob=False, scoring_func="softmax", attention_bias=False, tie_word_embeddings=False),
    ),
    # As V2-Lite: queries projected directly, one group, YaRN with equal magnitudes.
    "deepseek_v2_lite_tiny": (
        transformers.DeepseekV2Config,
        dict(hidden_size=32, num_hidden_layers=5, num_key_value_heads=4, intermediate_size=40, moe_intermediate_size=10,
             n_routed_experts=16, n_shared_experts=2, num_experts_per_tok=4, first_k_dense_replace=1, q_lora_rank=None,
             kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=6, routed_scaling_factor=1.0,
             topk_method="greedy", tie_word_embeddings=False,
             rope_scaling={"rope_type": "yarn", "factor": 8.0, "mscale": 0.707, "mscale_all_dim": 0.707, "beta_fast": 32,
                           "beta_slow": 1, "original_max_position_embeddings": 32}),
    ),
    # As V2: low-rank queries, experts in groups, scaled weights.
    "deepseek_v2_tiny": (
        transformers.DeepseekV2Config,
        dict(hidden_size=32, num_hidden_layers=5, num_key_value_heads=4, intermediate_size=40, moe_intermediate_size=10,
             n_routed_experts=16, n_shared_experts=1, num_experts_per_tok=4, first_k_dense_replace=1, q_lora_rank=20,
             kv_lora_rank=16, qk_nope_head_dim=6, qk_rope_head_dim=6, v_head_dim=14, routed_scaling_factor=2.5,
             topk_method="group_limited_greedy", n_group=4, topk_group=2, attention_bias=True, tie_word_embeddings=False),
    ),
    "granite_moe_tiny": (
        transformers.GraniteMoeConfig,
        dict(hidden_size=32, num_key_value_heads=2, intermediate_size=12, num_local_experts=12, num_experts_per_tok=4,
             embedding_multiplier=0.4, attention_multiplier=0.3, residual_multiplier=2.0, logits_scaling=4.0,
             attention_bias=True, tie_word_embeddings=True,
             rope_scaling={"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                           "original_max_position_embeddings": 64}),
    ),
}


def byte_characters():
    """The printable character that stands for each byte in byte-level BPE files: printable bytes keep their own."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    characters = {byte: chr(byte) for byte in kept}
    moved = [byte for byte in range(256) if byte not in characters]
    characters.update({byte: chr(256 + rank) for rank, byte in enumerate(moved)})
    return [characters[byte] for byte in range(256)]


def write_tokenizer(folder):
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    added = [
        {"id": 256 + rank, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for rank, text in enumerate(SPECIAL_TOKENS)
    ]
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {character: byte for byte, character in enumerate(byte_characters())}, "merges": [],
        },
    }
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL_TOKENS[0],
                "pad_token": SPECIAL_TOKENS[1], "clean_up_tokenization_spaces": False, "model_max_length": 256}
    write_json(folder / "tokenizer.json", tokenizer)
    write_json(folder / "tokenizer_config.json", settings)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def random_weight(key, shape, generator):
    noise = torch.randn(shape, generator=generator)
    return 1 + NORM_STD * noise if len(shape) == 1 and not key.endswith("bias") else INIT_STD * noise


class NumpyModel:
    """deepseek_numpy.Model, with what this script asks of a model of transformers."""

    def __init__(self, sizes, generator):
        self.fields = {"architectures": ["DeepseekForCausalLM"], "model_type": "deepseek", "hidden_act": "silu",
                       "torch_dtype": "float32", **COMMON, **sizes}
        self.config = types.SimpleNamespace(**self.fields)
        shapes = deepseek_numpy.parameter_shapes(self.fields)
        self.weights = {key: random_weight(key, shape, generator) for key, shape in sorted(shapes.items())}
        self.to(torch.float32)

    def to(self, dtype):
        rounded = {key: weight.to(dtype).double().numpy() for key, weight in self.weights.items()}
        self.model = deepseek_numpy.Model(self.fields, rounded)
        self.dtype = dtype
        return self

    def trace(self, ids):
        hidden, final, router, logits = self.model.trace(ids.numpy())
        lists = [[torch.from_numpy(numpy.ascontiguousarray(x)).to(self.dtype) for x in values]
                 for values in (hidden, [final], router, [logits])]
        return lists[0], lists[1][0], lists[2], lists[3][0]

    def save_pretrained(self, folder):
        folder.mkdir(exist_ok=True)
        write_json(folder / "config.json", self.fields)
        safetensors.torch.save_file(self.weights, folder / "model.safetensors", metadata={"format": "pt"})


def make_model(name, seed):
    config_class, sizes = MODELS[name]
    generator = torch.Generator().manual_seed(seed)
    if config_class is dict:
        return NumpyModel(sizes, generator)
    config = config_class(**{**COMMON, **sizes})
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for key, weight in sorted(model.named_parameters()):
            weight.copy_(random_weight(key, weight.shape, generator))
    if config_class is transformers.DeepseekV2Config and config.rope_scaling:
        # DeepSeek's own code multiplies the softmax's scale by this; the class of this version of transformers does not.
        magnitude = 0.1 * config.rope_scaling["mscale_all_dim"] * math.log(config.rope_scaling["factor"]) + 1
        for layer in model.model.layers:
            layer.self_attn.scaling *= magnitude**2
    return model


def router_of(layer):
    """The module whose weight [E, d] gives the router's logits; None in a dense layer."""
    block = getattr(layer, "block_sparse_moe", None) or layer.mlp
    if hasattr(block, "router"):
        return block.router.layer
    return getattr(block, "gate", None)


def trace(model, ids):
    """Hidden states, final norm, router logits (lists over layers) and logits of one prompt."""
    if isinstance(model, NumpyModel):
        return model.trace(ids)
    hidden, final, router = [], [], []

    def keep_router_logits(module, args):
        rows = args[0].reshape(-1, args[0].shape[-1])
        router.append(torch.nn.functional.linear(rows, module.weight))

    hooks = [layer.register_forward_pre_hook(lambda _, args: hidden.append(args[0][0].clone()))
             for layer in model.model.layers]
    hooks += [module.register_forward_pre_hook(keep_router_logits)
              for module in map(router_of, model.model.layers) if module is not None]
    hooks.append(model.model.norm.register_forward_pre_hook(lambda _, args: hidden.append(args[0][0].clone())))
    hooks.append(model.model.norm.register_forward_hook(lambda _, args, out: final.append(out[0].clone())))
    with torch.no_grad():
        output = model(input_ids=ids[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    return hidden, final[0], router, output.logits[0]


def greedy(model, ids):
    tokens, margins = [], []
    for _ in range(GREEDY_TOKENS):
        logits = trace(model, torch.tensor([*ids.tolist(), *tokens]))[3][-1]
        best = logits.float().topk(2)
        tokens.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
    return torch.tensor(tokens, dtype=torch.int32), torch.tensor(margins)


def router_margin(model, ids):
    """The smallest gap between the last active and the first inactive expert, or group, in standard deviations."""
    config = model.config
    active, groups, open_groups = config.num_experts_per_tok, 1, 1
    if getattr(config, "topk_method", None) == "group_limited_greedy":
        groups, open_groups = config.n_group, config.topk_group
    logits = torch.cat(trace(model, ids)[2])
    if active == logits.shape[1]:
        return float("inf")
    margin = float("inf")
    if open_groups < groups:
        grouped = logits.reshape(len(logits), groups, -1)
        best, order = grouped.max(dim=2).values.sort(dim=1, descending=True)
        margin = float((best[:, open_groups - 1] - best[:, open_groups]).min())
        logits = grouped[torch.arange(len(logits))[:, None], order[:, :open_groups]].reshape(len(logits), -1)
    ranked = logits.sort(dim=1, descending=True).values
    return min(margin, float((ranked[:, active - 1] - ranked[:, active]).min())) / float(torch.cat(
        trace(model, ids)[2]).std())


def tests_much(quality):
    return (quality["logit_margin"] >= LOGIT_MARGIN_MIN and quality["router_margin"] >= ROUTER_MARGIN_MIN
            and quality["distinct_tokens"] >= DISTINCT_TOKENS_MIN)


def expected(model):
    golden = {}
    quality = {"logit_margin": float("inf"), "router_margin": float("inf"), "distinct_tokens": GREEDY_TOKENS}
    for p, text in enumerate(PROMPTS):
        ids = torch.tensor(list(text.encode()))
        hidden, final, router, logits = trace(model, ids)
        golden[f"prompt{p}.ids"] = ids.to(torch.int32)
        for layer, value in enumerate(hidden):
            golden[f"prompt{p}.hidden.{layer}"] = value
        for layer, value in enumerate(router):
            golden[f"prompt{p}.router_logits.{layer}"] = value
        golden[f"prompt{p}.final_norm"] = final
        golden[f"prompt{p}.logits"] = logits
        tokens, margins = greedy(model, ids)
        golden[f"prompt{p}.greedy"], golden[f"prompt{p}.greedy_margin"] = tokens, margins
        whole = torch.cat([ids, tokens.long()])
        quality["logit_margin"] = min(quality["logit_margin"], float(margins.min() / logits.std()))
        quality["router_margin"] = min(quality["router_margin"], router_margin(model, whole))
        quality["distinct_tokens"] = min(quality["distinct_tokens"], len(set(tokens.tolist())))
        if not tests_much(quality):
            break
    return golden, quality


def add_bfloat16(model, golden):
    model = model.to(torch.bfloat16)
    for p, text in enumerate(PROMPTS):
        ids = torch.tensor(list(text.encode()))
        golden[f"prompt{p}.bfloat16.logits"] = trace(model, ids)[3]
        tokens, margins = greedy(model, ids)
        golden[f"prompt{p}.bfloat16.greedy"], golden[f"prompt{p}.bfloat16.greedy_margin"] = tokens, margins


def write_provenance(chosen):
    write_json(HERE / "provenance.json", {
        "script": "tests/golden/model/make_model_goldens.py",
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "transformers": transformers.__version__, "safetensors": safetensors.__version__,
                     "numpy": numpy.__version__},
        "dtype": "float32; the tensors named bfloat16 in bfloat16",
        "device": "cpu, 1 thread",
        "prompts": PROMPTS,
        "models": chosen,
        "margins": "in standard deviations of the logits, float32; router_margin null: all experts are active",
        "tolerance": {"float32 logits, hidden states": "2e-4 of their standard deviation", "float32 greedy": "equal",
                      "bfloat16 logits": "0.1 of their standard deviation for at least half of the rows: rounding that "
                                         "swaps an expert moves a row by up to 2 standard deviations",
                      "bfloat16 greedy": "the first token; later ones up to a greedy_margin within that tolerance"},
    })


def main():
    torch.set_num_threads(1)
    assert [len(text) for text in PROMPTS] == [1, 7, 33]
    chosen = json.loads((HERE / "provenance.json").read_text())["models"] if sys.argv[1:] else {}
    for name in sys.argv[1:] or MODELS:
        for seed in range(200):
            model = make_model(name, seed)
            golden, quality = expected(model)
            if tests_much(quality):
                break
        else:
            raise SystemExit(f"{name}: no seed keeps away from ties")
        folder = HERE / name
        model.save_pretrained(folder)
        write_tokenizer(folder)
        add_bfloat16(model, golden)
        golden = {key: value.contiguous() for key, value in golden.items()}
        safetensors.torch.save_file(golden, folder / "golden.safetensors")
        chosen[name] = {"seed": seed,
                        **{key: None if value == float("inf") else value for key, value in quality.items()}}
        print(name, chosen[name])
        write_provenance(chosen)


if __name__ == "__main__":
    main()
