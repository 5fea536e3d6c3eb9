#!/usr/bin/env python3
"""Makes unicode.jsonl: what the PyPI package `tokenizers` does with every character, for the tables of server/text.

    VENV/bin/python tests/golden/tokenizer/make_unicode_goldens.py     (the environment of make_tokenizer_goldens.py)

Line 1 is a header. Then objects by kind:
    pattern, runs         the characters that a regular expression matches alone, as gap and length of each run in turn
    stage, runs           the characters that a pre-tokenizer makes words of their own in "x?x" (its JSON); gap and length
    single_word, runs     the characters beside which an added token with single_word is none
    normalizer, blocks    its JSON, and for each 4,096 characters of which it changes any, their number and the first 12 digits of the
                          SHA-256 of "character>text\\n" of those it changes, in order
    strings, digests      strings of starters and marks, and of each form NFC, NFD, NFKC, NFKD those of all the texts joined
"""

import hashlib
import json
import os
import random
import sys

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from golden_strings import SEED
from make_tokenizer_goldens import FOLDER, dump, fields, write_lines

CHARACTERS = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
CATEGORIES = ("L N P S M Z C Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Cn Co").split()
SCRIPTS = "Arabic Common Cyrillic Devanagari Greek Han Hangul Hebrew Hiragana Inherited Kannada Katakana Lao Latin Thai".split()
PATTERNS = [r"\p{%s}" % name for name in CATEGORIES + SCRIPTS] + [
    r"\s", r"\S", r"\w", r"\W", r"\d", r"\D", r"[\w]", r"[^\w]", r"[\d]", r"[\s]", r"[[:word:]]", r"[[:digit:]]", r"[[:punct:]]",
    r"[[:space:]]", r"\P{L}", r"\p{^N}", r"[^\p{L}\p{N}]", r"[^\s\p{L}\p{N}]", r"[\P{Mn}x]", r"[\p{L}\p{M}]",
    r"[^\r\n\p{L}\p{P}\p{S}]", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"."]


def runs(characters):
    result, end = [], 0
    for c in sorted(map(ord, characters)):
        if result and c == end:
            result[-1] += 1
        else:
            result += [c - end, 1]
        end = c + 1
    return result


def matched(pattern):
    step = pre_tokenizers.Split(Regex(pattern), "removed")
    return [c for c in CHARACTERS if not step.pre_tokenize_str(c)]


def blocks(step):
    digests = []
    for first in range(0, 0x110000, 4096):
        changed = "".join(f"{c}>{text}\n" for c in map(chr, range(first, first + 4096)) if not 0xD800 <= ord(c) <= 0xDFFF
                          for text in [step.normalize_str(c)] if text != c)
        if changed:
            digests.append([first // 4096, hashlib.sha256(changed.encode()).hexdigest()[:12]])
    return digests


def mixed_strings():
    """Starters and marks that compose and reorder: all characters that NFD or NFC touch, and all marks beside others."""
    rng = random.Random(f"{SEED} unicode")
    nfd = normalizers.NFD()
    composed = [c for c in CHARACTERS if nfd.normalize_str(c) != c and not "\uac00" <= c <= "\ud7a3"]
    marks = [c for c in CHARACTERS if nfd.normalize_str(f"a{c}\u0334") != f"a{c}\u0334" and c not in composed]
    heads = [nfd.normalize_str(c)[:-1] for c in composed] + list("aeiouAEK\u03b1\u03c5\u0915\u1100\uac00\uac01")
    tails = [nfd.normalize_str(c)[-1] for c in composed] + marks
    strings = []
    for _ in range(500):
        parts = [rng.choice(rng.choice([composed, heads, tails, marks, marks, ["\u1161", "\u11a8", "\ud55c", "x"]])) for _ in range(7)]
        strings.append("".join(parts))
    for first in range(0, len(marks), 12):  # Every mark among others.
        chosen = marks[first : first + 12]
        rng.shuffle(chosen)
        strings.append("a" + "".join(chosen))
    return strings


def main():
    single_word = Tokenizer(models.BPE({"?": 0}, [], unk_token="?"))
    single_word.add_tokens([AddedToken("QQ", single_word=True, normalized=False)])
    lines = [{"script": os.path.basename(__file__), "tokenizers": tokenizers.__version__, "seed": SEED}]
    lines += [{"pattern": pattern, "runs": runs(matched(pattern))} for pattern in PATTERNS]
    for step in (pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Punctuation("isolated"), pre_tokenizers.BertPreTokenizer(),
                 pre_tokenizers.Whitespace(), pre_tokenizers.WhitespaceSplit()):
        alone = [c for c in CHARACTERS if [word for word, _ in step.pre_tokenize_str(f"x{c}x")] == ["x", c, "x"]]
        lines.append({"stage": fields(pre_tokenizer=step)["pre_tokenizer"], "runs": runs(alone)})
    lines.append({"single_word": True, "runs": runs(c for c in CHARACTERS if "QQ" not in single_word.encode(c + "QQ").tokens)})
    forms = [normalizers.NFC(), normalizers.NFD(), normalizers.NFKC(), normalizers.NFKD()]
    for step in [*forms, normalizers.Lowercase(), normalizers.Strip(), normalizers.BertNormalizer(),
                 normalizers.BertNormalizer(lowercase=False, strip_accents=False)]:
        lines.append({"normalizer": fields(normalizer=step)["normalizer"], "blocks": blocks(step)})
    strings = mixed_strings()
    digests = [hashlib.sha256("".join(map(form.normalize_str, strings)).encode()).hexdigest()[:12] for form in forms]
    lines.append({"strings": strings, "digests": digests})
    write_lines(FOLDER / "unicode.jsonl", map(dump, lines))


if __name__ == "__main__":
    sys.exit(main())
