"""The dense original as a transformers LlamaForCausalLM, for carving and checking. Needs torch and transformers."""

import pathlib

import numpy as np
import torch
import transformers

import dense_source
import gguf_reader
import safetensors_file


def _as_stored(values: np.ndarray, rounded: bool) -> torch.Tensor:
    if rounded:
        values = safetensors_file.from_bfloat16(safetensors_file.to_bfloat16(values))
    return torch.from_numpy(np.array(values))  # A copy: what numpy maps may be read-only.


def load(source: gguf_reader.GgufFile, rounded: bool) -> transformers.LlamaForCausalLM:
    """Computes in float32. rounded: the weights are first rounded to bfloat16, as the built folder stores them;
    otherwise they are exactly what the GGUF says."""
    shape = dense_source.shape_of(source)
    config = transformers.LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.neurons,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context, rope_theta=shape.rope_theta, rms_norm_eps=shape.rms_eps,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    weights = {name: _as_stored(values, rounded) for name, values in dense_source.outer_weights(source).items()}
    for layer in range(shape.layers):
        for name, values in dense_source.layer_weights(source, shape, layer).items():
            weights[f"model.layers.{layer}.{name}"] = _as_stored(values, rounded)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    # Buffers are not in the state dict and were made without values.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


def load_tokenizer(folder: pathlib.Path) -> transformers.PreTrainedTokenizerFast:
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)
