"""Makes ids.json: the ids that llama.cpp and Hugging Face's tokenizers give for the texts of tests/golden/tokenizer/strings.jsonl, by every
name in tokenizer.ggml.pre that c3po knows. Vocabulary and merges are those of byte_level.vocabulary.gguf, the stages before them those of
the published tokenizer.json files, from which STAGES is told anew. Beside them sentence_piece.vocabulary.gguf.

`hugging_face` is a digest of all texts' ids (digest_of), `differ` lists the texts for which llama.cpp gives others, and `llama_cpp` is
the digest of its ids of the rest. llama.cpp tells code points apart by its own tables and by regular expressions written anew, and normalizes
nothing, hence the differences; c3po follows Hugging Face.

    python make_gguf_ids.py   (needs llama-cpp-python 0.3.36 and tokenizers)
"""

import json
import pathlib
import struct
import tempfile
import zlib

import llama_cpp
import tokenizers

import assembled_gguf as assembled
from llama_reader import QUIET

HERE = pathlib.Path(__file__).resolve().parent
TOKENIZERS = HERE.parent.parent / "tokenizer"
NFC = {"type": "NFC"}
DIGITS = {"type": "Digits", "individual_digits": True}
ASIAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
LOWER, UPPER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def byte_level(words):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": words}


def letters_of_deepseek():
    """The pattern of deepseek.json, which names each letter."""
    steps = json.loads((TOKENIZERS / "deepseek.json").read_text())["pre_tokenizer"]["pretokenizers"]
    return [step["pattern"]["Regex"] for step in steps if step["type"] == "Split"]


LLAMA3 = (None, [split(WORDS + r"|\p{N}{1,3}" + REST), byte_level(False)], True)
ONE_DIGIT = (None, [DIGITS, byte_level(True)], False)
# Normalizer, pre-tokenizers, ignore_merges.
STAGES = {
    "gpt-2": (None, [byte_level(True)], False),
    "olmo": (NFC, [byte_level(True)], False),
    "refact": ONE_DIGIT, "starcoder": ONE_DIGIT, "smollm": ONE_DIGIT,
    "qwen2": (NFC, [split(WORDS + r"|\p{N}" + REST), byte_level(False)], False),
    "llama-bpe": LLAMA3, "llama3": LLAMA3, "llama-v3": LLAMA3,
    "tekken": (None, [split(rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}"
                            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"), byte_level(False)], True),
    "deepseek-llm": (None, [*map(split, letters_of_deepseek()), DIGITS, byte_level(False)], False),
    "deepseek-coder": (None, [split(r"[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split(ASIAN), DIGITS, byte_level(False)], False),
    "deepseek-v3": (None, [split(r"\p{N}{1,3}"), split("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"),
                           split(r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
                                 r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"), byte_level(False)], False),
}


def digest_of(all_ids):
    """crc32 of the little-endian int32 numbers: of each text how many ids, and the ids."""
    crc = 0
    for ids in all_ids:
        crc = zlib.crc32(struct.pack(f"<{len(ids) + 1}i", len(ids), *ids), crc)
    return crc


def hugging_face(pre, texts):
    root = json.loads((TOKENIZERS / "byte_level.json").read_text())
    normalizer, steps, ignore_merges = STAGES[pre]
    root["normalizer"], root["pre_tokenizer"] = normalizer, {"type": "Sequence", "pretokenizers": steps}
    root["model"]["ignore_merges"] = ignore_merges
    for token in root["added_tokens"]:
        token["lstrip"] = token["rstrip"] = token["single_word"] = False  # A GGUF file does not say.
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(root))
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def llama(path, texts):
    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    assert model, path
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    result = []
    for text in texts:
        encoded = text.encode()
        room = len(encoded) + 16
        buffer = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(vocabulary, encoded, len(encoded), buffer, room, False, True)
        assert count >= 0, text
        result.append(list(buffer[:count]))
    llama_cpp.llama_model_free(model)
    return result


def compared(ours, theirs):
    differ = [i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b]
    same = set(range(len(ours))) - set(differ)
    return {"hugging_face": digest_of(ours), "differ": differ, "llama_cpp": digest_of(theirs[i] for i in sorted(same))}


def main():
    llama_cpp.llama_log_set(QUIET, None)
    texts = [json.loads(line) for line in (TOKENIZERS / "strings.jsonl").read_text().splitlines()]
    result = {}
    with tempfile.TemporaryDirectory() as temporary:
        path = pathlib.Path(temporary) / "vocabulary.gguf"
        for pre in STAGES:
            model = {"vocabulary": "byte_level", "metadata": {"general.architecture": ["string", "olmoe"], "tokenizer.ggml.pre": ["string", pre]}}
            assembled.write(path, model, {})
            result[pre] = compared(hugging_face(pre, texts), llama(path, texts))
    tokenizer = tokenizers.Tokenizer.from_file(str(HERE.parent / "sentence_piece.tokenizer.json"))
    ours = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    result["sentence_piece"] = compared(ours, llama(HERE.parent / "sentence_piece.vocabulary.gguf", texts))
    for name, value in result.items():
        print(f"{name}: {len(value['differ'])} of {len(texts)} differ")
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in result.items())
    (HERE / "ids.json").write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
