#!/usr/bin/env python3
"""Makes unicode_tables.cc: what the PyPI package `tokenizers` takes each character for, found by asking it about all of them.

    python3 -m venv VENV && VENV/bin/pip install tokenizers==0.23.3
    VENV/bin/python server/text/make_unicode_tables.py

It needs Debian 12's Python and libpcre2-8, whose Unicode version is the same. Regex is built upon PCRE2, and needs to know what it
has otherwise.

The library draws on several Rust crates, each with tables of another Unicode version; hence one table for each use. The format is
told in unicode_tables.h. tests/golden/tokenizer/make_unicode_goldens.py asks again, in another way, for the tests.
"""

import ctypes
import itertools
import sys
import unicodedata
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

CHARACTERS = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
HANGUL = range(0xAC00, 0xD7A4)
CATEGORIES = ("L N P S M Z C Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Cn Co").split()
SCRIPTS = """Arabic Armenian Bengali Bopomofo Common Cyrillic Devanagari Ethiopic Georgian Greek Gujarati Gurmukhi Han Hangul Hebrew
Hiragana Inherited Kannada Katakana Khmer Lao Latin Malayalam Mongolian Myanmar Sinhala Tamil Telugu Thai Tibetan""".split()


def normalized(step):
    """What `step` makes of each character that it changes."""
    pairs = ((c, step.normalize_str(c)) for c in CHARACTERS)
    return {ord(c): text for c, text in pairs if text != c}


def matched(pattern):
    """The characters that the library's regular expressions match."""
    step = normalizers.Replace(Regex(pattern), "")
    return {ord(c) for first in range(0, len(CHARACTERS), 64) for c in matched_of(step, CHARACTERS[first : first + 64])}


def matched_of(step, characters):
    left = set(step.normalize_str("".join(characters)))
    return [c for c in characters if c not in left]


def isolated(step):
    """The characters that a pre-tokenizer makes words of their own in mid-word."""
    return {ord(c) for c in CHARACTERS if [word for word, _ in step.pre_tokenize_str(f"x{c}x")] == ["x", c, "x"]}


def keeps_words_apart():
    """The characters beside which an added token with single_word is none."""
    tokenizer = Tokenizer(models.BPE({"?": 0}, [], unk_token="?"))
    tokenizer.add_tokens([AddedToken("QQ", single_word=True, normalized=False)])
    return {ord(c) for c in CHARACTERS if "QQ" not in tokenizer.encode(c + "QQ").tokens}


def combining_classes(nfd):
    """{character: class}, by the order that NFD gives two marks: the smaller class goes first. Only the order of classes counts, so
    they are numbered from 1. U+0345 alone has the largest."""
    form = normalizers.NFD()

    def swapped(first, second):
        return first != second and form.normalize_str("a" + first + second) == "a" + second + first

    marks = [c for c in CHARACTERS if ord(c) not in nfd and (swapped("\u0345", c) or c == "\u0345")]
    classes = []  # Ascending, one character each.
    found = {}
    for mark in marks:
        low, high = 0, len(classes)
        while low < high:
            middle = (low + high) // 2
            if swapped(mark, classes[middle]):
                low = middle + 1
            else:
                high = middle
        if low == len(classes) or swapped(classes[low], mark):
            classes.insert(low, mark)
    for mark in marks:
        found[ord(mark)] = next(i for i, other in enumerate(classes, 1) if not swapped(mark, other) and not swapped(other, mark))
    return found


class Pcre2:
    """What PCRE2's own tables say. Its general categories are those of this Python, whose tables have the same version."""

    def __init__(self):
        self.library = ctypes.CDLL("libpcre2-8.so.0")
        for name in ("compile", "match_data_create_from_pattern"):
            getattr(self.library, f"pcre2_{name}_8").restype = ctypes.c_void_p
        self.version = self.config(11)
        if self.config(10) != unicodedata.unidata_version:
            raise SystemExit(f"PCRE2 has Unicode {self.config(10)}, this Python {unicodedata.unidata_version}")

    def config(self, what):
        text = ctypes.create_string_buffer(64)
        self.library.pcre2_config_8(what, text)
        return text.value.decode()

    def of_category(self, name):
        return {ord(c) for c in CHARACTERS if unicodedata.category(c).startswith(name)}

    def of_script(self, name, among):
        """Those of the characters `among` that have the script."""
        pattern = b"\\p{sc:%s}" % name.encode()
        error, offset = ctypes.c_int(), ctypes.c_size_t()
        utf_ucp, no_utf_check = 0x00080000 | 0x00020000, 0x40000000
        code = self.library.pcre2_compile_8(pattern, ctypes.c_size_t(len(pattern)), utf_ucp, ctypes.byref(error), ctypes.byref(offset), None)
        if not code:
            raise ValueError(f"PCRE2 does not know the script {name}")
        code = ctypes.c_void_p(code)
        data = ctypes.c_void_p(self.library.pcre2_match_data_create_from_pattern_8(code, None))
        found = set()
        for c in among:
            text = chr(c).encode()
            if self.library.pcre2_match_8(code, text, ctypes.c_size_t(len(text)), ctypes.c_size_t(0), no_utf_check, data, None) > 0:
                found.add(c)
        return found


# --- Encoding ---


def digits(number):
    text = ""
    while True:
        number, low = divmod(number, 32)
        text += DIGITS[low + (32 if number else 0)]
        if not number:
            return text


def signed(number):
    return digits(2 * number if number >= 0 else -2 * number - 1)


def runs(characters):
    """[first, last] of each run."""
    result = []
    for c in sorted(characters):
        if result and result[-1][1] == c - 1:
            result[-1][1] = c
        else:
            result.append([c, c])
    return result


def encode_set(characters):
    end, text = 0, ""
    for first, last in runs(characters):
        text += digits(first - end) + digits(last - first)
        end = last + 1
    return text


def encode_mapping(mapping):
    at, text = 0, ""
    for c, target in sorted(mapping.items()):
        text += digits(c - at) + digits(len(target) - 1)
        at = previous = c
        for each in map(ord, target):
            text += signed(each - previous)
            previous = each
    return text


def encode_classes(classes):
    end, text = 0, ""
    for number, group in itertools.groupby(sorted(classes.items()), key=lambda item: item[1]):
        for first, last in runs(c for c, _ in group):
            text += digits(first - end) + digits(last - first) + digits(number)
            end = last + 1
    return text


# --- The file ---


def literal(text, indent):
    width = 118 - indent
    lines = [text[i : i + width] for i in range(0, len(text), width)] or [""]
    return "\n".join(" " * indent + f'"{line}"' for line in lines)


def constant(comment, name, text):
    return f"// {comment}\nextern const char {name}[] =\n{literal(text, 4)};\n"


def properties(pcre2):
    """Rows of kRegexProperties: what PCRE2's tables lack, or all of a category where they have too much."""
    rows = []
    for name in CATEGORIES + SCRIPTS:
        ours = matched(r"\p{%s}" % name)
        theirs = pcre2.of_category(name) if name in CATEGORIES else pcre2.of_script(name, ours)
        if ours == theirs:
            continue
        whole = bool(theirs - ours)
        text = encode_set(ours if whole else ours - theirs)
        rows.append(f'    {{"{name.lower()}", {"true" if whole else "false"},\n{literal(text, 5)}}},\n')
    return "".join(rows)


def main():
    pcre2 = Pcre2()
    bert = dict(clean_text=False, handle_chinese_chars=False, strip_accents=False, lowercase=False)
    nfd, nfkd, nfc = (normalized(form) for form in (normalizers.NFD(), normalizers.NFKD(), normalizers.NFC()))
    cleaned = normalized(normalizers.BertNormalizer(**{**bert, "clean_text": True}))
    stripped = normalized(normalizers.BertNormalizer(**{**bert, "strip_accents": True}))
    lower = normalized(normalizers.Lowercase())
    canonical = {c: text for c, text in nfd.items() if c not in HANGUL}
    parts = [
        constant("Digits, by Rust's char::is_numeric: Unicode 17.", "kNumeric",
                 encode_set(isolated(pre_tokenizers.Digits(individual_digits=True)))),
        constant("Punctuation and BertPreTokenizer, by the crate unicode_categories: before Unicode 9.", "kPunctuation",
                 encode_set(isolated(pre_tokenizers.Punctuation("isolated")))),
        constant("What BertNormalizer's clean_text drops: the same crate's Cc, Cf and Co, and U+FFFD.", "kCleanedAway",
                 encode_set(c for c, text in cleaned.items() if text == "")),
        constant("What BertNormalizer's strip_accents drops: the same crate's Mn.", "kNonspacingMark",
                 encode_set(c for c, text in stripped.items() if text == "" and c not in nfd)),
        constant("Word characters of the pre-tokenizer Whitespace, by the crate regex: Unicode 16.", "kWordCharacter",
                 encode_set(c for c in map(ord, CHARACTERS) if is_word(c))),
        constant("Characters beside which an added token with single_word is none, by the same crate.", "kSingleWordNeighbor",
                 encode_set(keeps_words_apart())),
        constant("Lowercase and BertNormalizer, by Rust's char::to_lowercase: Unicode 17.", "kLowercase", encode_mapping(lower)),
        constant("NFD of characters other than Hangul, by the crate unicode-normalization-alignments: before Unicode 13.",
                 "kCanonicalDecomposition", encode_mapping(canonical)),
        constant("NFKD where it is not NFD.", "kCompatibilityDecomposition",
                 encode_mapping({c: text for c, text in nfkd.items() if text != nfd.get(c)})),
        constant("What NFC puts in place of its NFD.", "kPrimaryComposite", encode_set(c for c in canonical if c not in nfc)),
        constant("Combining classes, numbered in their order.", "kCombiningClass", encode_classes(combining_classes(nfd))),
    ]
    head = (f"// Generated by make_unicode_tables.py with tokenizers {tokenizers.__version__} and PCRE2 {pcre2.version}. Not to be edited.\n// Long because all tables of characters are made by one script.\n// clang-format off\n\n"
            '#include "server/text/unicode_tables.h"\n\nnamespace c3po::unicode_tables {\n\n')
    regex = ("// Regular expressions, by Oniguruma: Unicode 16. What PCRE2's tables, of Unicode 14, lack; or the whole property.\n"
             f"extern const RegexProperty kRegexProperties[] = {{\n{properties(pcre2)}    {{nullptr, false, nullptr}}}};\n")
    text = head + "\n".join(parts) + "\n" + regex + "\n}  // namespace c3po::unicode_tables\n"
    (Path(__file__).resolve().parent / "unicode_tables.cc").write_text(text, encoding="ascii")
    print(f"{len(text)} bytes", file=sys.stderr)


WHITESPACE = pre_tokenizers.Whitespace()


def is_word(c):
    return [word for word, _ in WHITESPACE.pre_tokenize_str(f"x{chr(c)}x")] == [f"x{chr(c)}x"]


if __name__ == "__main__":
    main()
