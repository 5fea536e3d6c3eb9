"""Makes FAMILY.gguf, a tiny model of each family as llama.cpp's convert_hf_to_gguf.py writes it, and FAMILY.config.json, the
Hugging Face configuration that it was made of.

Weights are not random but recomputed by the tests: entry i of the tensor `name` is
    ((crc32(name) + 2654435761 i) mod 2^32 >> 24) / 256 - 1/2
which bfloat16 holds exactly. So what a GGUF file turns, merges and splits is compared with the Hugging Face tensor bit by
bit, and no second copy of the weights is stored. The tokenizer is that of tests/golden/model, over the 256 bytes.

The converter is that of the sdist of PyPI's llama-cpp-python 0.3.36, vendor/llama.cpp, which is not ours to store:
    pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36
    python make_gguf_models.py FOLDER_OF_LLAMA_CPP
It knows tokenizers by a digest of what they give for one text; ours are told to it by name. Needs torch, transformers
4.57.6, gguf, numpy, safetensors.
"""

import json
import logging
import pathlib
import shutil
import sys
import tempfile
import zlib

import numpy
import safetensors.numpy

HERE = pathlib.Path(__file__).resolve().parent
TOKENIZER = HERE.parent / "model" / "olmoe_tiny"
D, HEADS, LAYERS, EXPERTS, F, VOCABULARY = 32, 4, 2, 4, 16, 260

COMMON = dict(hidden_size=D, num_attention_heads=HEADS, num_hidden_layers=LAYERS, num_experts_per_tok=2,
              vocab_size=VOCABULARY, max_position_embeddings=256, rope_theta=10000.0, rms_norm_eps=1e-5, hidden_act="silu",
              eos_token_id=256, tie_word_embeddings=False)
YARN = dict(rope_type="yarn", factor=8.0, original_max_position_embeddings=32, beta_fast=32, beta_slow=1, mscale=0.707,
            mscale_all_dim=0.707)
LATENT = dict(kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=12, moe_intermediate_size=F,
              intermediate_size=24, n_routed_experts=EXPERTS, first_k_dense_replace=1, norm_topk_prob=False,
              attention_bias=False, num_key_value_heads=HEADS, scoring_func="softmax")
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
# Name: what its GGUF tokenizer's `pre` is, the configuration, and flags of the converter.
MODELS = {
    "olmoe": ("olmo", dict(architectures=["OlmoeForCausalLM"], model_type="olmoe", intermediate_size=F, num_experts=EXPERTS,
                           num_key_value_heads=2, norm_topk_prob=False, attention_bias=False)),
    "qwen2_moe": ("qwen2", dict(architectures=["Qwen2MoeForCausalLM"], model_type="qwen2_moe", intermediate_size=24,
                                moe_intermediate_size=F, shared_expert_intermediate_size=20, num_experts=EXPERTS,
                                num_key_value_heads=2, norm_topk_prob=False, rope_theta=1000000.0, rms_norm_eps=1e-6)),
    "qwen2_moe_fused": ("qwen2", dict(architectures=["Qwen2MoeForCausalLM"], model_type="qwen2_moe", intermediate_size=24,
                                      moe_intermediate_size=F, shared_expert_intermediate_size=20, num_experts=EXPERTS,
                                      num_key_value_heads=2, norm_topk_prob=False), "--fuse-qkv"),
    "qwen3_moe": ("qwen2", dict(architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", intermediate_size=24,
                                moe_intermediate_size=F, num_experts=EXPERTS, num_key_value_heads=2, head_dim=16,
                                norm_topk_prob=True, attention_bias=False, tie_word_embeddings=True)),
    "deepseek": ("deepseek-llm", dict(architectures=["DeepseekForCausalLM"], model_type="deepseek", intermediate_size=24,
                                      moe_intermediate_size=F, n_routed_experts=EXPERTS, n_shared_experts=2,
                                      first_k_dense_replace=1, moe_layer_freq=1, num_key_value_heads=HEADS,
                                      norm_topk_prob=False, attention_bias=False, scoring_func="softmax")),
    "deepseek_v2": ("deepseek-llm", dict(LATENT, architectures=["DeepseekV2ForCausalLM"], model_type="deepseek_v2",
                                         n_shared_experts=2, q_lora_rank=None, n_group=1, topk_group=1,
                                         topk_method="greedy", routed_scaling_factor=1.0, rope_scaling=YARN)),
    "deepseek_v2_groups": ("deepseek-llm", dict(LATENT, architectures=["DeepseekV2ForCausalLM"], model_type="deepseek_v2",
                                                n_shared_experts=1, q_lora_rank=12, n_group=2, topk_group=1,
                                                topk_method="group_limited_greedy", routed_scaling_factor=2.5)),
    "mixtral": ("gpt-2", dict(architectures=["MixtralForCausalLM"], model_type="mixtral", intermediate_size=F,
                              num_local_experts=EXPERTS, num_key_value_heads=2, rope_theta=1000000.0)),
    "mixtral_llama3": ("llama-bpe", dict(architectures=["MixtralForCausalLM"], model_type="mixtral", intermediate_size=F,
                                         num_local_experts=EXPERTS, num_key_value_heads=2, rope_theta=500000.0,
                                         rope_scaling=LLAMA3), "--fuse-qkv"),
    "granite_moe": ("refact", dict(architectures=["GraniteMoeForCausalLM"], model_type="granitemoe", intermediate_size=F,
                                   num_local_experts=EXPERTS, num_key_value_heads=2, attention_bias=True,
                                   attention_multiplier=0.0625, embedding_multiplier=12.0, residual_multiplier=0.22,
                                   logits_scaling=6.0, tie_word_embeddings=True)),
}


def attention_shapes(config):
    if "kv_lora_rank" in config:
        rank, rope, plain = config["kv_lora_rank"], config["qk_rope_head_dim"], config["qk_nope_head_dim"]
        query, q_rank = HEADS * (plain + rope), config["q_lora_rank"]
        shapes = {"kv_a_proj_with_mqa.weight": (rank + rope, D), "kv_a_layernorm.weight": (rank,),
                  "kv_b_proj.weight": (HEADS * (plain + config["v_head_dim"]), rank),
                  "o_proj.weight": (D, HEADS * config["v_head_dim"])}
        if q_rank is None:
            return {**shapes, "q_proj.weight": (query, D)}
        return {**shapes, "q_a_proj.weight": (q_rank, D), "q_a_layernorm.weight": (q_rank,), "q_b_proj.weight": (query, q_rank)}
    head = config.get("head_dim", D // HEADS)
    query, key = HEADS * head, config["num_key_value_heads"] * head
    shapes = {"q_proj.weight": (query, D), "k_proj.weight": (key, D), "v_proj.weight": (key, D), "o_proj.weight": (D, query)}
    if config["model_type"] == "qwen2_moe" or config.get("attention_bias"):
        shapes.update({"q_proj.bias": (query,), "k_proj.bias": (key,), "v_proj.bias": (key,)})
    if config.get("attention_bias"):
        shapes["o_proj.bias"] = (D,)
    if config["model_type"] == "olmoe":
        shapes.update({"q_norm.weight": (query,), "k_norm.weight": (key,)})
    if config["model_type"] == "qwen3_moe":
        shapes.update({"q_norm.weight": (head,), "k_norm.weight": (head,)})
    return shapes


def gated(prefix, f, names=("gate_proj", "up_proj", "down_proj")):
    return {f"{prefix}.{names[0]}.weight": (f, D), f"{prefix}.{names[1]}.weight": (f, D), f"{prefix}.{names[2]}.weight": (D, f)}


def feed_forward_shapes(config, layer):
    kind = config["model_type"]
    if layer < config.get("first_k_dense_replace", 0):
        return gated("mlp", config["intermediate_size"])
    if kind == "granitemoe":
        return {"block_sparse_moe.router.layer.weight": (EXPERTS, D), "block_sparse_moe.input_linear.weight": (EXPERTS, 2 * F, D),
                "block_sparse_moe.output_linear.weight": (EXPERTS, D, F)}
    if kind == "mixtral":
        shapes = {"block_sparse_moe.gate.weight": (EXPERTS, D)}
        for e in range(EXPERTS):
            shapes.update(gated(f"block_sparse_moe.experts.{e}", F, ("w1", "w3", "w2")))
        return shapes
    shapes = {"mlp.gate.weight": (EXPERTS, D)}
    for e in range(EXPERTS):
        shapes.update(gated(f"mlp.experts.{e}", F))
    if kind == "qwen2_moe":
        shapes.update(gated("mlp.shared_expert", config["shared_expert_intermediate_size"]))
        shapes["mlp.shared_expert_gate.weight"] = (1, D)
    if kind.startswith("deepseek"):
        shapes.update(gated("mlp.shared_experts", F * config["n_shared_experts"]))
    return shapes


def shapes_of(config):
    shapes = {"model.embed_tokens.weight": (VOCABULARY, D), "model.norm.weight": (D,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (VOCABULARY, D)
    for layer in range(LAYERS):
        parts = {"input_layernorm.weight": (D,), "post_attention_layernorm.weight": (D,)}
        parts.update({f"self_attn.{name}": shape for name, shape in attention_shapes(config).items()})
        parts.update(feed_forward_shapes(config, layer))
        shapes.update({f"model.layers.{layer}.{name}": shape for name, shape in parts.items()})
    return shapes


def values_of(name, shape):
    index = numpy.arange(numpy.prod(shape), dtype=numpy.uint64)
    mixed = (numpy.uint64(zlib.crc32(name.encode())) + index * numpy.uint64(2654435761)) & numpy.uint64(0xFFFFFFFF)
    return ((mixed >> numpy.uint64(24)).astype(numpy.float32) / 256 - 0.5).reshape(shape)


def convert(converter, folder, pre, path, outtype="bf16", *flags):
    """Runs the converter with our tokenizers known to it."""
    base = sys.modules["conversion.base"]
    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
    sys.argv = ["convert_hf_to_gguf.py", str(folder), "--outfile", str(path), "--outtype", outtype, *flags]
    converter.main()


def main():
    logging.disable(logging.INFO)
    sys.path.insert(0, sys.argv[1])
    import convert_hf_to_gguf as converter
    for name, (pre, own, *flags) in MODELS.items():
        config = {**COMMON, **own}
        with tempfile.TemporaryDirectory() as temporary:
            folder = pathlib.Path(temporary) / name
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
            shutil.copy(folder / "config.json", HERE / f"{name}.config.json")
            safetensors.numpy.save_file({tensor: values_of(tensor, shape) for tensor, shape in shapes_of(config).items()},
                                        folder / "model.safetensors", metadata={"format": "pt"})
            for file in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(TOKENIZER / file, folder)
            convert(converter, folder, pre, HERE / f"{name}.gguf", "bf16", *flags)


if __name__ == "__main__":
    main()
