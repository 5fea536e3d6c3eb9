"""Makes what transformers computes when one key of a configuration is changed: tests/golden/config/BASE.jsonl.

A base is a tiny configuration of one family. A case changes it in one key, or in two that contradict each other: the first
line of a file is {"base": CONFIG, "logits": [...]}, every other one {"set": {KEY: VALUE}, "drop": [KEY], RESULTS}, and the
changed configuration is base + set - drop. RESULTS are "v4" (transformers 4.57) and "v5" (5.24), or "both" where these
agree, or "numpy" (../model/deepseek_numpy.py) for the family that transformers has no class for. A result is
    "refused"   the configuration, the model or its forward pass raises an error, or gives NaN
    "same"      the logits of the base
    [8 numbers] the logits of the tokens LOGITS after the tokens TOKENS
There are no weights: entry i of the tensor NAME is a function of i and NAME alone (synthetic()), so that a changed shape has
weights too. Names are those of transformers 4.57, experts one by one.

saved_5/BASE holds the base as transformers 5.24 saves it with save_original_format=False: renamed keys and tensors.

Results of the other version are kept: run once with each. Cases that rounding changes (float32 against float64) are left out.
Usage: python make_config_goldens.py [BASE...]     (needs torch, transformers, safetensors, numpy; versions in provenance.json)
"""

import copy
import json
import math
import os
import pathlib
import platform
import sys
import tempfile

os.environ["TRANSFORMERS_VERBOSITY"] = "critical"
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy
import safetensors
import torch
import transformers

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "model"))
import deepseek_numpy

VOCABULARY = 48
TOKENS = [(7 * i * i + 3 * i + 1) % VOCABULARY for i in range(40)]
LOGITS = list(range(0, VOCABULARY, 6))
SAME = 1e-4     # Of the largest logit, within which two results are one.
COLUMN = "v" + transformers.__version__.split(".")[0]

COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "hidden_act": "silu", "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "rope_theta": 100.0, "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": 3, "pad_token_id": 0,
    "initializer_range": 0.02, "attention_dropout": 0.0, "use_cache": True,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "mscale": 0.8, "mscale_all_dim": 0.5, "beta_fast": 4, "beta_slow": 1,
        "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}
DEEPSEEK = {"num_key_value_heads": 4, "intermediate_size": 8, "moe_intermediate_size": 4, "n_routed_experts": 8,
            "n_shared_experts": 2, "num_experts_per_tok": 3, "first_k_dense_replace": 1, "norm_topk_prob": False,
            "attention_bias": False, "moe_layer_freq": 1, "scoring_func": "softmax", "num_hidden_layers": 3}
LATENT = {"kv_lora_rank": 8, "qk_nope_head_dim": 6, "qk_rope_head_dim": 8, "v_head_dim": 4, "mlp_bias": False}
BASES = {
    "olmoe": {"architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", **COMMON, "intermediate_size": 4,
              "num_experts": 6, "num_experts_per_tok": 3, "norm_topk_prob": False, "attention_bias": False,
              "clip_qkv": None, "rope_scaling": None, "output_router_logits": False, "router_aux_loss_coef": 0.01},
    "mixtral": {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", **COMMON, "intermediate_size": 4,
                "num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": None, "head_dim": 8,
                "router_jitter_noise": 0.0},
    "qwen2_moe": {"architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", **COMMON, "num_hidden_layers": 3,
                  "intermediate_size": 8, "moe_intermediate_size": 4, "shared_expert_intermediate_size": 6,
                  "num_experts": 6, "num_experts_per_tok": 2, "norm_topk_prob": False, "decoder_sparse_step": 1,
                  "mlp_only_layers": [1], "qkv_bias": True, "use_sliding_window": False, "sliding_window": None,
                  "max_window_layers": 2},
    "qwen3_moe": {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", **COMMON, "intermediate_size": 8,
                  "moe_intermediate_size": 4, "num_experts": 6, "num_experts_per_tok": 3, "norm_topk_prob": True,
                  "decoder_sparse_step": 1, "mlp_only_layers": [], "attention_bias": False, "head_dim": 10,
                  "use_sliding_window": False, "sliding_window": None, "max_window_layers": 2},
    "deepseek": {"architectures": ["DeepseekForCausalLM"], "model_type": "deepseek", **COMMON, **DEEPSEEK},
    "deepseek_v2": {"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", **COMMON, **DEEPSEEK,
                    **LATENT, "q_lora_rank": None, "topk_method": "greedy", "routed_scaling_factor": 1.0},
    "deepseek_v2_groups": {"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", **COMMON,
                           **DEEPSEEK, **LATENT, "q_lora_rank": 12, "topk_method": "group_limited_greedy",
                           "routed_scaling_factor": 2.5, "n_group": 4, "topk_group": 2, "attention_bias": True},
    "granite_moe": {"architectures": ["GraniteMoeForCausalLM"], "model_type": "granitemoe", **COMMON,
                    "intermediate_size": 4, "num_local_experts": 6, "num_experts_per_tok": 2, "attention_bias": True,
                    "embedding_multiplier": 0.4, "attention_multiplier": 0.3, "residual_multiplier": 2.0,
                    "logits_scaling": 4.0, "rope_scaling": LLAMA3},
}

# Keys of other families, of both versions' base class, and of what their attention, masks and caches look for.
OTHERS = {
    "alibi": [True], "attention_bias": [True], "attention_chunk_size": [8], "attention_multiplier": [0.5],
    "attn_logit_softcapping": [5.0], "aux_loss_alpha": [0.5], "chunk_size_feed_forward": [4], "clip_qkv": [0.5],
    "cross_attention_hidden_size": [8], "embedding_multiplier": [2.0], "ep_size": [2], "final_logit_softcapping": [1.0],
    "first_k_dense_replace": [1], "head_dim": [4, 16], "hidden_activation": ["gelu"], "is_causal": [False, True],
    "is_decoder": [True], "is_encoder_decoder": [True], "kv_lora_rank": [8], "kv_sharing_modes": [{"0": 1}],
    "layer_types": [["full_attention"] * 2, ["full_attention"] * 3, ["sliding_attention"] * 2, ["sliding_attention"] * 3],
    "lm_head_bias": [True], "logit_scale": [2.0], "logits_scaling": [2.0], "max_window_layers": [1], "mlp_bias": [True],
    "mlp_only_layers": [[0]], "moe_intermediate_size": [8], "moe_layer_freq": [2], "n_group": [2],
    "n_routed_experts": [3, 6], "n_shared_experts": [1], "norm_topk_prob": [True], "num_experts": [3, 6],
    "num_kv_shared_layers": [1], "num_local_experts": [3, 6], "num_nextn_predict_layers": [1],
    "original_max_position_embeddings": [8], "output_hidden_states": [True], "output_attentions": [True],
    "output_router_logits": [True], "partial_rotary_factor": [0.5, 1.0], "per_layer_config": [{"0": {"rms_norm_eps": 0.5}}],
    "position_embedding_type": ["nope", "alibi", "rope"], "pretraining_tp": [2], "pruned_heads": [{"0": [0]}],
    "q_lora_rank": [8], "qk_head_dim": [5], "qk_layernorm": [True], "qkv_bias": [True, False],
    "query_pre_attn_scalar": [4], "residual_multiplier": [0.5], "return_dict": [False], "rope_interleave": [False],
    "routed_scaling_factor": [2.0], "router_jitter_noise": [0.5], "scale_attn_weights": [False],
    "scoring_func": ["sigmoid"], "seq_aux": [False], "shared_expert_intermediate_size": [8],
    "shared_intermediate_size": [8], "sliding_window": [8, 64], "tie_encoder_decoder": [True],
    "tie_last_hidden_states": [True], "topk_group": [1], "topk_method": ["noaux_tc"], "torchscript": [True],
    "transformers_weights": ["other.safetensors"], "use_alibi": [True], "use_bias": [True],
    "use_parallel_residual": [True], "use_qk_norm": [True], "use_qkv_bias": [True], "use_sliding_window": [True],
    "zero_expert_num": [2],
}
ROPES = [
    {}, {"rope_type": "default"}, {"type": "default"}, {"rope_type": "default", "factor": 4.0}, {"factor": 4.0},
    {"rope_type": "default", "rope_theta": 1000.0}, {"rope_theta": 1000.0}, {"rope_type": "linear", "factor": 4.0},
    {"type": "linear", "factor": 4}, {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0},
    {"rope_type": "linear", "type": "linear", "factor": 4.0}, {"rope_type": "linear", "type": "dynamic", "factor": 4.0},
    {"rope_type": "dynamic", "type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 0.5},
    {"rope_type": "linear"}, {"rope_type": "linear", "factor": 4.0, "attention_factor": 2.0},
    {"rope_type": "linear", "factor": 4.0, "partial_rotary_factor": 0.5}, {"rope_type": "dynamic", "factor": 4.0},
    {"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
     "original_max_position_embeddings": 16},
    LLAMA3, {key: value for key, value in LLAMA3.items() if key != "original_max_position_embeddings"},
    {key: value for key, value in LLAMA3.items() if key != "low_freq_factor"}, {**LLAMA3, "high_freq_factor": 0.5},
    {**LLAMA3, "factor": 2}, YARN, {**YARN, "mscale": 0.5}, {**YARN, "mscale_all_dim": None}, {**YARN, "mscale": None},
    {**YARN, "mscale": None, "mscale_all_dim": None}, {**YARN, "beta_fast": 8}, {**YARN, "beta_slow": 2},
    {**YARN, "truncate": False}, {**YARN, "truncate": True}, {**YARN, "attention_factor": 1.5}, {**YARN, "factor": None},
    {**YARN, "factor": 2.0}, {**YARN, "original_max_position_embeddings": 32},
    {key: value for key, value in YARN.items() if key != "original_max_position_embeddings"},
    {"full_attention": {"rope_type": "linear", "factor": 4.0}}, {"rope_type": "proportional", "factor": 4.0}, "linear",
]
OF_5 = [LLAMA3, YARN, {"rope_type": "default", "rope_theta": 100.0}, {"rope_type": "default", "rope_theta": 1000.0},
        {"rope_type": "linear", "factor": 4.0}, {"type": "linear", "factor": 4.0}, {"rope_theta": 1000.0},
        {"rope_type": "linear", "type": "dynamic", "factor": 4.0},
        {"rope_type": "linear", "factor": 4.0, "partial_rotary_factor": 0.5},
        {"full_attention": {"rope_type": "linear", "factor": 4.0}}]
PAIRS = [
    {"sliding_window": 8, "use_sliding_window": False}, {"sliding_window": 8, "use_sliding_window": True},
    {"sliding_window": 8, "use_sliding_window": None}, {"sliding_window": 64, "use_sliding_window": True},
    {"norm_topk_prob": True, "num_experts_per_tok": 1}, {"norm_topk_prob": False, "num_experts_per_tok": 1},
    {"num_experts": 6, "num_local_experts": 3}, {"num_experts": 3, "num_local_experts": 6},
    {"rope_scaling": LLAMA3, "rope_parameters": YARN}, {"rope_scaling": LLAMA3, "rope_parameters": LLAMA3},
    {"rope_scaling": YARN, "original_max_position_embeddings": 8},
    {"rope_scaling": YARN, "original_max_position_embeddings": 16},
    {"rope_scaling": LLAMA3, "original_max_position_embeddings": 8},
    {"rope_theta": 50.0, "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}},
    {"rope_theta": 50.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1000.0}},
    {"is_causal": False, "sliding_window": None},
]
WITHOUT = [["rope_theta", "rope_scaling"], ["num_key_value_heads", "head_dim"], ["model_type", "use_cache"]]


def variants(key, value):
    """Other values of a base's own key: near ones, ones that switch it off, and one of another type."""
    if key == "architectures":
        return [["OlmoeForCausalLM"], ["LlamaForCausalLM"], [], None]
    if key == "model_type":
        return ["olmoe", "mixtral", "llama"]
    if key == "hidden_act":
        return ["swish", "gelu", "relu", "Silu", None, 1]
    if key == "topk_method":
        return ["greedy", "group_limited_greedy", "noaux_tc", None]
    if isinstance(value, bool):
        return [not value, None, int(not value), "true"]
    if isinstance(value, int):
        return [value + 1, 2 * value, *([value - 1] if value > 1 else []), 1, 0, -1, None, float(value), value + 0.5, "2"]
    if isinstance(value, float):
        return [2 * value + 0.01, value / 2, 0.0, -1.0, 1, None, "0.5"]
    if isinstance(value, list):
        return [[], [0], [0, 1, 2], [-1], None, 1]
    if isinstance(value, str):
        return ["other", None]
    return []


def cases_of(base):
    """(set, drop), each once and none that changes nothing."""
    cases = []
    for key, value in base.items():
        cases += [({key: other}, []) for other in variants(key, value)] + [({}, [key])]
    cases += [({key: value}, []) for key, values in OTHERS.items() for value in values]
    cases += [({"rope_scaling": rope}, []) for rope in ROPES]
    cases += [({"rope_parameters": rope}, drop) for rope in OF_5 for drop in (["rope_theta", "rope_scaling"], [])]
    cases += [(pair, []) for pair in PAIRS] + [({}, keys) for keys in WITHOUT]
    seen, unique = set(), []
    for changed, drop in cases:
        drop = [key for key in drop if key in base]
        if all(key in base and json.dumps(base[key]) == json.dumps(value) for key, value in changed.items()) and not drop:
            continue
        if (text := json.dumps([changed, drop])) not in seen:
            seen.add(text)
            unique.append((changed, drop))
    return unique


def synthetic(name, shape):
    """Entry i: splitmix64's i-th output from FNV-1a of the name, as u in [-1, 1); 1 + 0.2 u in a norm, else 0.45 u."""
    state = 0xCBF29CE484222325
    for byte in name.encode():
        state = (state ^ byte) * 0x100000001B3 % 2**64
    count = math.prod(shape)
    with numpy.errstate(over="ignore"):
        z = numpy.uint64(state) + numpy.arange(1, count + 1, dtype=numpy.uint64) * numpy.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
        z = z ^ (z >> numpy.uint64(31))
    u = (z >> numpy.uint64(40)).astype(numpy.float64) / 2**23 - 1
    values = 1 + 0.2 * u if name.endswith("norm.weight") else 0.45 * u
    return torch.from_numpy(values.astype(numpy.float32).reshape(shape))


def weights_of(name, shape, model_type):
    """Those of a parameter of either version, made from tensors under the names of transformers 4.57."""
    if model_type == "mixtral":
        name = name.replace(".mlp.", ".block_sparse_moe.")
        parts = ("w1", "w3", "w2")
    else:
        parts = ("gate_proj", "up_proj", "down_proj")
    if model_type == "granitemoe":
        for new, old in (("experts.gate_up_proj", "input_linear.weight"), ("experts.down_proj", "output_linear.weight"),
                         ("router.weight", "router.layer.weight")):
            name = name.replace("block_sparse_moe." + new, "block_sparse_moe." + old)
        return synthetic(name, shape)
    prefix, dot, last = name.rpartition("experts.")
    if last not in ("gate_up_proj", "down_proj"):
        return synthetic(name, shape)
    experts = []
    for e in range(shape[0]):
        one = f"{prefix}experts.{e}."
        if last == "down_proj":
            experts.append(synthetic(f"{one}{parts[2]}.weight", shape[1:]))
        else:
            half = (shape[1] // 2, shape[2])
            experts.append(torch.cat([synthetic(f"{one}{part}.weight", half) for part in parts[:2]]))
    return torch.stack(experts)


def make_model(config):
    """The model of a configuration as a folder's reader builds it, with synthetic weights."""
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "config.json").write_text(json.dumps(config))
        read = transformers.AutoConfig.from_pretrained(folder)
    if COLUMN == "v5":
        read._experts_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(read, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights_of(name, tuple(parameter.shape), read.model_type))
    return model


def logits_of(model):
    with torch.no_grad():
        output = model(input_ids=torch.tensor([TOKENS]), use_cache=False)
    logits = output.logits if hasattr(output, "logits") else output[0]
    return logits[0, -1, LOGITS].double().numpy()


def numpy_logits(config):
    config = deepseek_numpy.with_defaults(config)
    weights = {name: synthetic(name, shape).numpy() for name, shape in deepseek_numpy.parameter_shapes(config).items()}
    return deepseek_numpy.Model(config, weights).trace(numpy.array(TOKENS))[3][-1, LOGITS]


def close(a, b):
    return numpy.abs(a - b).max() <= SAME * numpy.abs(b).max()


def result(config, base_logits):
    """`refused`, `same`, the logits, or None where rounding decides."""
    try:
        if config["architectures"] == ["DeepseekForCausalLM"]:
            logits = numpy_logits(config)
        else:
            model = make_model(config)
            logits = logits_of(model)
            if base_logits is None or not close(logits, base_logits):
                if not close(logits_of(model.double()), logits):
                    return None
    except Exception as error:
        if os.environ.get("SHOW"):
            print(type(error).__name__, str(error)[:200])
        return "refused"
    if not numpy.isfinite(logits).all():
        return "refused"
    if base_logits is not None and close(logits, base_logits):
        return "same"
    return [float(f"{x:.6g}") for x in logits]


def merged(results):
    """`both` in place of two equal columns."""
    v4, v5 = results.get("v4"), results.get("v5")
    if v4 is None or v5 is None:
        return results
    vectors = isinstance(v4, list) and isinstance(v5, list)
    if v4 == v5 or vectors and close(numpy.array(v4), numpy.array(v5)):
        return {"both": v5}
    return results


def columns(line):
    return {"v4": line["both"], "v5": line["both"]} if "both" in line else {
        key: line[key] for key in ("v4", "v5") if key in line}


def make(name):
    path, base = HERE / f"{name}.jsonl", BASES[name]
    column = "numpy" if name == "deepseek" else COLUMN
    before = {}
    if path.exists() and column != "numpy":
        for text in path.read_text().splitlines()[1:]:
            line = json.loads(text)
            before[json.dumps([line.get("set", {}), line.get("drop", [])])] = columns(line)
    base_logits = numpy.array(result(base, None))
    lines, unstable = [{"base": base, "logits": base_logits.tolist()}], 0
    for changed, drop in cases_of(base):
        config = {key: value for key, value in {**copy.deepcopy(base), **changed}.items() if key not in drop}
        config.setdefault("architectures", None)
        found = result(config, base_logits)
        unstable += found is None
        results = {**before.get(json.dumps([changed, drop]), {}), **({} if found is None else {column: found})}
        if not results:
            continue
        line = {**({"set": changed} if changed else {}), **({"drop": drop} if drop else {}), **merged(results)}
        lines.append(line)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    print(name, len(lines) - 1, "cases;", unstable, "left out")
    return len(lines) - 1


def save_as_5(name):
    if COLUMN != "v5" or name == "deepseek":
        return
    model = make_model(BASES[name])
    model.config.architectures = BASES[name]["architectures"]
    folder = HERE / "saved_5" / name
    model.save_pretrained(folder, save_original_format=False)
    (folder / "generation_config.json").unlink(missing_ok=True)


def main():
    torch.set_num_threads(1)
    path = HERE / "provenance.json"
    provenance = json.loads(path.read_text()) if path.exists() else {"cases": {}, "versions": {}}
    for name in sys.argv[1:] or BASES:
        provenance["cases"][name] = make(name)
        save_as_5(name)
    provenance["versions"][COLUMN] = {"python": platform.python_version(), "torch": torch.__version__,
                                      "transformers": transformers.__version__, "safetensors": safetensors.__version__,
                                      "numpy": numpy.__version__}
    provenance = {
        "script": "tests/golden/config/make_config_goldens.py", "seed": "none: weights are functions of their names",
        "dtype": "float32, checked against float64", "device": "cpu, 1 thread, eager attention and experts",
        "tolerance": "5e-4 of the largest of the logits", **{key: provenance[key] for key in ("versions", "cases")}}
    path.write_text(json.dumps(provenance, indent=1) + "\n")


if __name__ == "__main__":
    main()
