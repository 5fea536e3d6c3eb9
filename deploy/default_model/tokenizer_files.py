"""tokenizer.json and tokenizer_config.json of the default model, rebuilt from what its GGUF holds: tokens, merges,
token types, special ids and the chat template.

GGUF names the split before BPE only by a word, tokenizer.ggml.pre = "smollm". That is: each digit by itself, then
GPT-2's byte-level pattern; so it is written out here."""

from typing import Any

_CONTROL = 3  # tokenizer.ggml.token_type of special tokens; 1 is an ordinary token.


def _added_token(content: str) -> dict[str, Any]:
    return {"content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": True}


def _checked(metadata: dict[str, Any]) -> tuple[list[str], list[int]]:
    """All tokens, and the ids of the special ones."""
    tokens = metadata["tokenizer.ggml.tokens"]
    types = metadata["tokenizer.ggml.token_type"]
    if metadata["tokenizer.ggml.model"] != "gpt2" or metadata["tokenizer.ggml.pre"] != "smollm":
        raise ValueError("the GGUF's tokenizer is not the byte-level BPE of SmolLM")
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise ValueError("the GGUF's tokens are not distinct, or do not match their types")
    if not set(types) <= {1, _CONTROL}:
        raise ValueError(f"the GGUF's tokens have types {sorted(set(types))}, expected 1 and {_CONTROL}")
    return tokens, [index for index, kind in enumerate(types) if kind == _CONTROL]


def tokenizer(metadata: dict[str, Any]) -> dict[str, Any]:
    """What goes into tokenizer.json (format of Hugging Face tokenizers, version 1.0)."""
    tokens, special = _checked(metadata)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, **_added_token(tokens[index])} for index in special],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence",
                          "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": metadata["tokenizer.ggml.merges"],
        },
    }


def tokenizer_config(metadata: dict[str, Any]) -> dict[str, Any]:
    tokens, special = _checked(metadata)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": metadata["llama.context_length"],
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "bos_token": tokens[metadata["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[metadata["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[metadata["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[metadata["tokenizer.ggml.unknown_token_id"]],
        "additional_special_tokens": [tokens[metadata["tokenizer.ggml.bos_token_id"]],
                                      tokens[metadata["tokenizer.ggml.eos_token_id"]]],
        "added_tokens_decoder": {str(index): _added_token(tokens[index]) for index in special},
        "chat_template": metadata["tokenizer.chat_template"],
    }
