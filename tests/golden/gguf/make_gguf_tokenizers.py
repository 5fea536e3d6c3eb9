"""Makes NAME.vocabulary.gguf: tokenizers of tests/golden/tokenizer as llama.cpp's convert_hf_to_gguf.py --vocab-only writes
them, and of a SentencePiece model that is trained here, with transformers' tokenizer.json of it beside it. The tests
compare the ids that a GGUF file gives with those of its tokenizer.json.

    python make_gguf_tokenizers.py FOLDER_OF_LLAMA_CPP   (see make_gguf_models.py; needs sentencepiece too)
"""

import json
import logging
import pathlib
import shutil
import sys
import tempfile

import sentencepiece
import transformers

from make_gguf_models import COMMON, HERE, MODELS, convert

TOKENIZERS = HERE.parent / "tokenizer"
sys.path.insert(0, str(TOKENIZERS))
from golden_strings import training_text  # noqa: E402

CHAT = (HERE.parent / "chat" / "templates" / "chatml.jinja").read_text()
# Name: `pre`, and what tokenizer_config.json says.
CASES = {
    "byte_level": ("smollm", {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>", "chat_template": CHAT}),
    "qwen": ("qwen2", {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHAT}),
    "deepseek": ("deepseek-llm", {"bos_token": "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
                                  "eos_token": "<\uff5cend\u2581of\u2581sentence\uff5c>", "add_bos_token": True,
                                  "add_eos_token": False}),
}


def write_config(folder, family, size, **ids):
    config = {**COMMON, **MODELS[family][1], "vocab_size": size, **ids}
    (folder / "config.json").write_text(json.dumps(config))


def write_byte_level(folder, name, own):
    """Tokenizer files. Returns the number of tokens."""
    tokenizer = json.loads((TOKENIZERS / f"{name}.json").read_text())
    shutil.copy(TOKENIZERS / f"{name}.json", folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **own}))
    return max([*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])]) + 1


def convert_byte_level(converter, temporary, name, pre, own):
    folder = temporary / name
    folder.mkdir()
    write_config(folder, "olmoe", write_byte_level(folder, name, own), eos_token_id=1)
    convert(converter, folder, pre, HERE / f"{name}.vocabulary.gguf", "bf16", "--vocab-only")


def write_sentence_piece(folder):
    """tokenizer.model and tokenizer_config.json of a SentencePiece model that is trained here."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(list(training_text())), model_prefix=str(folder / "tokenizer"), model_type="bpe", vocab_size=900,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, character_coverage=0.995,
        split_digits=True, num_threads=1, minloglevel=2)
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True,
         "add_eos_token": False}))


def convert_sentence_piece(converter, temporary):
    folder = temporary / "sentence_piece"
    folder.mkdir()
    write_sentence_piece(folder)
    tokenizer = transformers.LlamaTokenizerFast(vocab_file=str(folder / "tokenizer.model"), legacy=True, add_bos_token=True,
                                                add_prefix_space=True)
    saved = temporary / "saved"
    tokenizer.save_pretrained(saved)
    shutil.copy(saved / "tokenizer.json", HERE / "sentence_piece.tokenizer.json")
    write_config(folder, "mixtral", len(tokenizer), bos_token_id=1, eos_token_id=2)
    convert(converter, folder, "", HERE / "sentence_piece.vocabulary.gguf", "bf16", "--vocab-only")


def main():
    logging.disable(logging.INFO)
    sys.path.insert(0, sys.argv[1])
    import convert_hf_to_gguf as converter
    with tempfile.TemporaryDirectory() as temporary:
        for name, (pre, own) in CASES.items():
            convert_byte_level(converter, pathlib.Path(temporary), name, pre, own)
        convert_sentence_piece(converter, pathlib.Path(temporary))


if __name__ == "__main__":
    main()
