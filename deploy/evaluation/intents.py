"""Our own requests with many intents, made from a seed: what a household asks an assistant for (20 intents) and what
customers ask a bank about (77 that are close to each other).

DOMAIN_intents.json holds the prompt, per side texts that fill {slots}, openings and closings, and per intent its
templates, each written for one side. The sides share no template, no text of a slot, no opening and no closing; `load`
refuses a file where they do. So a held-out request is never a reference with another name filled in."""

import functools
import json
import pathlib
import string
from typing import Any, NamedTuple

from benchmarks import Archive, Item, Task
from procedural import Stream

_FOLDER = pathlib.Path(__file__).resolve().parent
_SIDES = ("references", "heldout")
_TRIES = 200  # Of filling a template until a text comes out that is not there yet.
_ORNAMENT_ONE_IN = 3  # So many texts have an opening; as many a closing.


class Domain(NamedTuple):
    """file: name below this folder. counts: references and held-out requests, spread evenly over the intents."""

    name: str
    file: str
    counts: tuple[int, int]


DOMAINS = [Domain("household_intents", "household_intents.json", (360, 600)),
           Domain("bank_intents", "bank_intents.json", (924, 1000))]


def slots(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


def _shared(groups: list[list[str]]) -> set[str]:
    """Texts that are in both groups, or twice in one."""
    texts = [text for group in groups for text in group]
    return {text for text in texts if texts.count(text) > 1}


def load(path: pathlib.Path) -> dict[str, Any]:
    """ValueError: a label is there twice, or the sides share something, or a template has a slot without texts."""
    domain = json.loads(path.read_text(encoding="utf-8"))
    if twice := _shared([[intent["label"] for intent in domain["intents"]]]):
        raise ValueError(f"{path.name}: label {min(twice)} is there twice")
    if twice := _shared([[template for intent in domain["intents"] for template in intent[side]] for side in _SIDES]):
        raise ValueError(f"{path.name}: template {min(twice)!r} is there twice")
    for side, other in (_SIDES, _SIDES[::-1]):
        for name, texts in domain["texts"][side].items():
            if twice := _shared([texts, domain["texts"][other].get(name, [])]):
                raise ValueError(f"{path.name}: {name} {min(twice)!r} is there twice")
        for intent in domain["intents"]:
            for template in intent[side]:
                if missing := slots(template) - set(domain["texts"][side]):
                    raise ValueError(f"{path.name}: {side} have no texts for {{{min(missing)}}} of {template!r}")
    return domain


def _filled(template: str, texts: dict[str, list[str]], stream: Stream) -> str:
    """A slot that comes twice is filled alike."""
    def one_of(name: str) -> str:
        return texts[name][stream.below(len(texts[name]))]

    def seldom(name: str) -> str:
        return one_of(name) if texts[name] and stream.below(_ORNAMENT_ONE_IN) == 0 else ""

    text = template.format(**{name: one_of(name) for name in sorted(slots(template))})
    return seldom("openings") + text + seldom("closings")


def _new_text(template: str, texts: dict[str, list[str]], stream: Stream, seen: set[str]) -> str:
    """ValueError: the template has no other text."""
    for _ in range(_TRIES):
        if (text := _filled(template, texts, stream)) not in seen:
            seen.add(text)
            return text
    raise ValueError(f"template {template!r} has no other text")


def requests(domain: Domain, side: str, path: pathlib.Path | None = None) -> list[Item]:
    """The side's requests: one of each intent in turn, its templates in turn. path: of the domain's file, this
    folder's by default."""
    content = load(path or _FOLDER / domain.file)
    labels = [intent["label"] for intent in content["intents"]]
    stream, seen = Stream(f"{domain.name}/{side}"), set()
    items = []
    for place in range(domain.counts[_SIDES.index(side)]):
        turn, number = divmod(place, len(labels))
        templates = content["intents"][number][side]
        template = templates[turn % len(templates)]
        text = _new_text(template, content["texts"][side], stream, seen)
        items.append(Item(f"{side}/{labels[number]}/{turn}", content["prompt"].format(text=text), f" {labels[number]}",
                          [f" {label}" for label in labels],
                          {"template": f"{side}/{labels[number]}/{turn % len(templates)}"}, (text,)))
    return items


def _read(domain: Domain, _: Archive, side: str) -> list[Item]:
    return requests(domain, side)


def _task(domain: Domain) -> Task:
    prompt = json.loads((_FOLDER / domain.file).read_text(encoding="utf-8"))["prompt"].replace("\n", "\\n")
    return Task(domain.name, "many_answers", "length_normalized", prompt, _SIDES, functools.partial(_read, domain),
                source=domain.file)


TASKS = [_task(domain) for domain in DOMAINS]
