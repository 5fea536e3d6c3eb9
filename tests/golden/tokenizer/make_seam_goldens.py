#!/usr/bin/env python3
"""Makes the goldens of what stands at the seam of a prompt and its continuation, with the PyPI package `tokenizers`.

    VENV/bin/python tests/golden/tokenizer/make_seam_goldens.py        (the environment of make_tokenizer_goldens.py)

Written here:
    seams.jsonl    line 1 is a header; then one object a case: its name, and
                     scores     [prompt, continuation, ids]: the ids of `continuation` after `prompt`, a text or token ids
                     texts      [context, ids, text]: what `ids` add to the text of `context`, special tokens skipped
    templates.jsonl  [post_processor, ids]: what a post_processor makes of the ids [0, 1]; null where the library panics

A continuation's ids are right when decode(prompt + ids) is decode(prompt) + continuation, which this script asserts. Of the ids
that are, those are taken that the tokenizer gives for prompt and continuation as one text, where that text begins with the
prompt's own ids. Else they are the library's for the continuation by a tokenizer that puts nothing before a text.
"""

import copy
import hashlib
import json
import os
import random
import sys

import tokenizers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from golden_strings import CODE, EMOJI, HAN, SEED, sentence
from make_tokenizer_goldens import FOLDER, cases, dump, fields, write_lines

CASES = ("byte_level", "metaspace", "prepend", "metaspace_split", "qwen", "deepseek_v3", "leading_space")
SCORES = 120
TEXTS = 60


def without_prefix(data):
    """The same tokenizer, but for what it puts before a text."""
    data = copy.deepcopy(data)

    def visit(value):
        if isinstance(value, list):
            for element in value:
                visit(element)
        elif isinstance(value, dict):
            if value.get("type") == "Metaspace":
                value["prepend_scheme"] = "never"
            if value.get("type") == "ByteLevel":
                value["add_prefix_space"] = False
            if value.get("type") == "Prepend":
                value["prepend"] = ""
            for member in value.values():
                visit(member)

    visit(data["normalizer"])
    visit(data["pre_tokenizer"])
    return data


def case(name):
    """As of cases(): base file, fields and model fields that replace the base's."""
    if name == "leading_space":
        return "byte_level.json", fields(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)), {}
    return cases()[name]


def load(name):
    base, overrides, model_overrides = case(name)
    data = json.loads((FOLDER / base).read_text(encoding="utf-8"))
    data.update(overrides)
    data["model"].update(model_overrides)
    return Tokenizer.from_str(json.dumps(data)), Tokenizer.from_str(json.dumps(without_prefix(data)))


def texts(rng):
    word = rng.random()
    if word < 0.6:
        return sentence(rng) + rng.choice(["", " ", "\n", " 12", "  x"])
    return rng.choice(CODE) if word < 0.75 else " ".join(rng.choice(HAN + EMOJI + ["the", "of", "42"]) for _ in range(5))


def spelling_of(tokenizer, ids):
    plain = tokenizer.decode(ids, skip_special_tokens=True)
    for text in (plain, tokenizer.decode(ids, skip_special_tokens=False)) if plain else (plain,):
        for special in (True, False):
            if tokenizer.encode(text, add_special_tokens=special).ids == ids:
                return text, special
    return None


def continuation_ids(tokenizer, middle, prompt, continuation):
    if isinstance(prompt, str):
        ids, spelling = tokenizer.encode(prompt).ids, (prompt, True)
    else:
        ids, spelling = prompt, spelling_of(tokenizer, prompt)
    if spelling is not None:
        whole = tokenizer.encode(spelling[0] + continuation, add_special_tokens=spelling[1]).ids
        if len(whole) > len(ids) and whole[: len(ids)] == ids:
            return ids, whole[len(ids) :]
    starts = tokenizer.decode(ids, skip_special_tokens=True) == "" and not isinstance(prompt, str)
    return ids, (tokenizer if starts else middle).encode(continuation, add_special_tokens=False).ids


def scores(name, rng):
    tokenizer, middle = load(name)
    rows = []
    while len(rows) < SCORES:
        text = texts(rng)
        if len(text) < 4 or tokenizer.decode(tokenizer.encode(text).ids).strip(" ") != text.strip(" "):
            continue
        at = rng.randrange(1, len(text)) if rng.random() < 0.4 else text.find(" ", rng.randrange(len(text)))
        if at <= 0:
            continue
        prompt, continuation = text[:at], text[at:]
        kind = rng.randrange(5)
        if kind == 1:
            prompt = tokenizer.encode(prompt).ids
        elif kind == 2:
            prompt = tokenizer.encode(prompt, add_special_tokens=False).ids
        elif kind > 2:  # A context that lost its beginning.
            prompt = tokenizer.encode(prompt, add_special_tokens=False).ids
            prompt = prompt[rng.randrange(len(prompt)) :]
        ids, expected = continuation_ids(tokenizer, middle, prompt, continuation)
        before = tokenizer.decode(ids, skip_special_tokens=True)
        after = tokenizer.decode(ids + expected, skip_special_tokens=True)
        if not before or "\ufffd" in before:  # Nothing, or half a character, stands before the seam.
            continue
        assert after == before + continuation, (name, prompt, continuation, before, after)
        rows.append([prompt, continuation, expected])
    return rows


def added_texts(name, rng):
    tokenizer, _ = load(name)
    size = max(tokenizer.get_vocab().values()) + 1
    rows = []
    while len(rows) < TEXTS:
        ids = tokenizer.encode(texts(rng)).ids
        if rng.random() < 0.3:
            ids = [rng.randrange(rng.choice([300, size])) for _ in range(rng.randint(2, 12))]
        at = rng.randint(0, len(ids))
        before, whole = tokenizer.decode(ids[:at]), tokenizer.decode(ids)
        if whole.startswith(before):
            rows.append([ids[:at], ids[at:], whole[len(before) :]])
    return rows


def templates():
    vocabulary = {letter: index for index, letter in enumerate("abXYZPQR")}

    def template(single, pair=None):
        return processors.TemplateProcessing(single=single, pair=pair,
                                             special_tokens=[(letter, vocabulary[letter]) for letter in "XYZPQR"])

    ends, pair = template("X $A", "X $A Z $B"), template("Y $A", "P $A Q $B R")
    chains = [[ends], [ends, pair], [template("$A X"), pair], [template("$A"), pair], [template("X $A Z"), pair],
              [ends, template("Y $A")], [ends, template("Y $A"), pair], [template("X Y $A"), pair],
              [processors.ByteLevel(), ends, pair], [ends, processors.ByteLevel(), pair], [processors.Sequence([ends]), pair],
              [ends, template("Y $A", "P $B Q $A R")], [ends, template("Y $A", "$B $A")]]
    rows = []
    for chain in chains:
        tokenizer = Tokenizer(models.BPE(vocabulary, []))
        tokenizer.post_processor = processors.Sequence(chain)
        try:
            ids = tokenizer.encode("ab").ids
        except BaseException as panic:  # pyo3's PanicException is no Exception.
            if type(panic).__name__ != "PanicException":
                raise
            ids = None
        rows.append([fields(post_processor=processors.Sequence(chain))["post_processor"], ids])
    return rows


def main():
    header = {"script": os.path.basename(__file__), "tokenizers": tokenizers.__version__, "seed": SEED,
              "bases": {name: hashlib.sha256((FOLDER / case(name)[0]).read_bytes()).hexdigest() for name in CASES}}
    lines = [dump(header)]
    for name in CASES:
        rng = random.Random(f"{SEED} seams {name}")
        base, overrides, model_overrides = case(name)
        lines.append(dump({"case": name, "base": base, "overrides": overrides, "model_overrides": model_overrides,
                           "scores": scores(name, rng), "texts": added_texts(name, rng)}))
    write_lines(FOLDER / "seams.jsonl", lines)
    write_lines(FOLDER / "templates.jsonl", map(dump, templates()))


if __name__ == "__main__":
    sys.exit(main())
