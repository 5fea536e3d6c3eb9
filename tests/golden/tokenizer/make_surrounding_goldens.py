#!/usr/bin/env python3
"""Makes surrounding.jsonl: what the tokenizer classes of transformers put around a text, found by running them.

    python3 -m venv VENV && VENV/bin/pip install transformers==4.57.6
    VENV/bin/python tests/golden/tokenizer/make_surrounding_goldens.py

Line 1 is a header. Then [tokenizer_class, model_type, add_bos_token, add_eos_token, template, ids] for each combination; null: the
folder's file has no such field. `template`: tokenizer.json has the post_processor "A $A", in place of one that adds nothing. `ids`
are those of the text "1"; null where transformers does not know the class. bos_token and eos_token are deepseek.json's.
"""

import itertools
import json
import logging
import os
import tempfile
from pathlib import Path

import transformers

FOLDER = Path(__file__).resolve().parent
BASE = "deepseek.json"
TOKENS = {"bos_token": "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "eos_token": "<\uff5cend\u2581of\u2581sentence\uff5c>"}
CLASSES = ["LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "GemmaTokenizerFast", "CohereTokenizer", "GPTNeoXTokenizer",
           "GPTNeoXTokenizerFast", "PreTrainedTokenizerFast", "Qwen2Tokenizer", "Qwen2TokenizerFast", "GPT2Tokenizer",
           "GPT2TokenizerFast", "BloomTokenizerFast", "TokenizersBackend"]
MODEL_TYPES = ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3"]


def write_folder(folder, tokenizer_class, model_type, add_bos, add_eos, template):
    tokenizer = json.loads((FOLDER / BASE).read_text(encoding="utf-8"))
    if template:
        letter = tokenizer["model"]["vocab"]["A"]
        item = {"SpecialToken": {"id": "A", "type_id": 0}}
        first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
        tokenizer["post_processor"] = {"type": "TemplateProcessing", "single": [item, first], "pair": [item, first, second],
                                       "special_tokens": {"A": {"id": "A", "ids": [letter], "tokens": ["A"]}}}
    config = dict(TOKENS, tokenizer_class=tokenizer_class, add_bos_token=add_bos, add_eos_token=add_eos)
    config = {key: value for key, value in config.items() if value is not None}
    for name, content in (("tokenizer.json", tokenizer), ("tokenizer_config.json", config), ("config.json", {"model_type": model_type})):
        Path(folder, name).write_text(json.dumps(content), encoding="utf-8")


def ids_of(case):
    with tempfile.TemporaryDirectory() as folder:
        write_folder(folder, *case)
        try:
            return transformers.AutoTokenizer.from_pretrained(folder)("1")["input_ids"]
        except ValueError as error:
            if "does not exist" not in str(error):
                raise
            return None


def main():
    logging.disable(logging.WARNING)
    lines = [{"script": os.path.basename(__file__), "base": BASE, "transformers": transformers.__version__}]
    classes = [(name, "mixtral") for name in CLASSES] + [(None, name) for name in MODEL_TYPES]
    for (name, model_type), add_bos, add_eos, template in itertools.product(classes, (None, False, True), (None, True), (False, True)):
        case = [name, model_type, add_bos, add_eos, template]
        lines.append(case + [ids_of(case)])
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    (FOLDER / "surrounding.jsonl").write_text(text, encoding="ascii")


if __name__ == "__main__":
    main()
