"""The strings that the tokenizer goldens are about, and the text that the small tokenizers are trained on.

Random characters are drawn from those that Unicode 3.2 had and whose category has not changed since, so that libraries with
tables of different Unicode versions agree. Everything follows from SEED.
"""

import random
import unicodedata

SEED = 20250404

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
               "<|tool|>", "<sep>", "Zig Zag", "ZIG ZAG", "zig zag", "xzig zag", "<|tool|><|tool|>", "<|user|>", "\ufffd",
               "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "<\uff5cUser\uff5c>",
               "<|begin_of_sentence|>", "\u00f8", "\u00f6\u00fa", "<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>",
               "<|end|>", "<|assistant|>", "<|system|>", "[INST]", "[/INST]", "<think>", "</think>", "<<SYS>>", "<s>[INST] ",
               "</s><s>", "<|im_end|>\n<|im_start|>", "<mask>", " <mask> ", "Left", " Left", "RIGHT", "word", "Word."]
HAN = """\u4f60\u597d \u4e16\u754c \u6c34 \u5c71 \u4eca\u5929 \u660e\u5929 \u6a21\u578b \u4e13\u5bb6 \u8bed\u8a00 \u95ee\u9898 \u56de\u7b54 \u4ec0\u4e48 \u4e3a\u4ec0\u4e48 \u6211\u4eec \u5b66\u4e60 \u6570\u5b66
\u79d1\u5b66 \u8def\u5f84 \u90bb\u5c45 \u7684 \u4e86 \u548c \u662f \u5728 \u4e0d \u6709 \u8fd9 \u90a3 \u4e2d\u56fd \u5317\u4eac \u65f6\u95f4 \u4e00\u4e2a""".split()
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

    for _ in range(800):
        strings.append(sentence(rng))
    for _ in range(300):
        strings.append(run(CODE, 1, 2, rng.choice(["\n", "\n    ", " "])))
    for _ in range(400):
        strings.append("".join(rng.choice(SPACES) + rng.choice(WORDS + ["", ""]) for _ in range(rng.randint(1, 5))))
    for _ in range(250):
        strings.append(run([chr(c) for c in [*range(32), *range(127, 160)]] + WORDS[:20], 1, 6))
    for _ in range(350):
        strings.append(run(NUMBERS + [str(rng.randrange(10**6))], 1, 4, rng.choice(["", " ", "+"])))
    for name in RANGES:
        for _ in range(72):
            strings.append(run(STABLE[name] + [" "] * max(1, len(STABLE[name]) // 6), 2, 10))
    for _ in range(300):
        strings.append("".join(marked() if rng.random() < 0.7 else rng.choice("ab ") for _ in range(rng.randint(1, 5))))
    for _ in range(200):
        strings.append(run(EMOJI + [" ", "ok"], 1, 4))
    for _ in range(250):
        strings.append(run(HAN + ["\uff0c", "\u3002", "\uff01", "\u3001", " ", "3", "2024", "\n", "GPU", "\uff08", "\uff09"], 2, 9))
    for _ in range(250):  # Right to left, with marks, digits and bidirectional controls between.
        strings.append(run(STABLE["hebrew"] + STABLE["arabic"] + ["\u200f", "\u202b", "\u202c", " ", " ", "12", "abc", "."], 3, 10))
    for _ in range(250):  # Neighbors of every kind: what a pattern's alternatives compete for.
        strings.append("".join(rng.choice([rng.choice(WORDS), rng.choice(SPACES), rng.choice(NUMBERS), rng.choice(HAN),
                                           rng.choice("!?.,;:'\"()[]{}<>|/\\@#$%^&*-_=+~`"), rng.choice(EMOJI),
                                           rng.choice(STABLE["any"])]) for _ in range(rng.randint(2, 8))))
    for _ in range(700):
        strings.append("".join(rng.choice(LOOK_ALIKES) if rng.random() < 0.6 else rng.choice([" ", "  ", "a", ".", "\n"] + WORDS)
                               for _ in range(rng.randint(1, 5))))
    return list(dict.fromkeys(strings))


def training_text(han=False):
    rng = random.Random(SEED + 1)
    lines = [sentence(rng) for _ in range(3000)] + CODE * 5
    for _ in range(300):
        lines.append(" ".join("".join(rng.choice(STABLE[rng.choice(["latin", "greek", "cyrillic"])]) for _ in range(3))
                              for _ in range(3)))
    for _ in range(600 if han else 0):
        lines.append("".join(rng.choice(HAN + ["\uff0c", "\u3002", "\n\n", "12"]) for _ in range(8)))
        lines.append(f"  {rng.choice(CODE)}\n\n    {sentence(rng)}).\n")
    return lines
