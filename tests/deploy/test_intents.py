"""Tests of the requests with many intents: what comes of their templates, and that the two sides share none. Need pytest.
Run: pytest tests/deploy/test_intents.py"""

import collections
import json
import pathlib
import re
import sys

import pytest

EVALUATION = pathlib.Path(__file__).resolve().parents[2] / "deploy" / "evaluation"
sys.path[:0] = [str(EVALUATION), str(EVALUATION.parent / "default_model")]

import intents

SIDES = ("references", "heldout")
SIMILARITY_MAX = 0.6  # The suite takes 0.8 for the same question.
# Labels, references, held-out requests.
COUNTS = {"household_intents": (20, 360, 600), "bank_intents": (77, 924, 1000)}


@pytest.fixture(params=intents.DOMAINS, ids=lambda domain: domain.name)
def domain(request: pytest.FixtureRequest) -> intents.Domain:
    return request.param


def content_of(domain: intents.Domain) -> dict:
    return json.loads((EVALUATION / domain.file).read_text(encoding="utf-8"))


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower()))


def template_pattern(template: str, texts: dict[str, list[str]]) -> re.Pattern:
    """What can come out of a template on its side: an opening, the slots filled, a closing."""
    def one_of(name: str) -> str:
        return "|".join(map(re.escape, texts[name]))

    parts = re.split(r"{(\w+)}", template)
    body = "".join(f"(?:{one_of(part)})" if at % 2 else re.escape(part) for at, part in enumerate(parts))
    return re.compile(f"(?:{one_of('openings')})?{body}(?:{one_of('closings')})?")


def test_there_are_as_many_requests_as_are_stated_and_of_each_intent_alike(domain: intents.Domain) -> None:
    labels = [f" {intent['label']}" for intent in content_of(domain)["intents"]]
    assert len(labels) == COUNTS[domain.name][0]
    for side, wanted in zip(SIDES, COUNTS[domain.name][1:]):
        items = intents.requests(domain, side)
        assert len(items) == wanted == len({item.prompt for item in items}) == len({item.native_id for item in items})
        assert all(item.choices == labels for item in items)
        counts = collections.Counter(item.answer for item in items)
        assert set(counts) == set(labels) and max(counts.values()) - min(counts.values()) <= 1 and min(counts.values()) >= 12


def test_requests_come_from_the_templates_of_their_side_and_all_are_used(domain: intents.Domain) -> None:
    content = content_of(domain)
    frame = content["prompt"].partition("{text}")
    for side in SIDES:
        templates = {f"{side}/{intent['label']}/{number}": template for intent in content["intents"]
                     for number, template in enumerate(intent[side])}
        items = intents.requests(domain, side)
        for item in items:
            name = item.metadata["template"]
            text = item.prompt.removeprefix(frame[0]).removesuffix(frame[2])
            assert name.startswith(f"{side}/{item.answer[1:]}/") and item.asked == (text,)
            assert template_pattern(templates[name], content["texts"][side]).fullmatch(text), item.prompt
        assert {item.metadata["template"] for item in items} == set(templates)


def test_sides_share_no_template_and_no_text_of_a_slot(domain: intents.Domain) -> None:
    content = content_of(domain)
    sides = [[template for intent in content["intents"] for template in intent[side]] for side in SIDES]
    assert not set(sides[0]) & set(sides[1])
    for name in set(content["texts"]["references"]) & set(content["texts"]["heldout"]):
        assert not set(content["texts"]["references"][name]) & set(content["texts"]["heldout"][name]), name
    for intent in content["intents"]:
        assert len(intent["references"]) >= 6 and len(intent["heldout"]) >= 4, intent["label"]


def test_no_held_out_request_is_nearly_a_reference(domain: intents.Domain) -> None:
    references = [words(item.asked[0]) for item in intents.requests(domain, "references")]
    for item in intents.requests(domain, "heldout"):
        own = words(item.asked[0])
        assert max(len(own & other) / len(own | other) for other in references) < SIMILARITY_MAX, item.prompt


def small_domain() -> dict:
    texts = {"openings": [], "closings": []}
    return {"prompt": "Request: {text}\nAction:",
            "texts": {"references": {**texts, "person": ["Ann"]}, "heldout": {**texts, "person": ["Bob"]}},
            "intents": [{"label": "call", "references": ["Call {person}."], "heldout": ["Get {person} on the line."]},
                        {"label": "text", "references": ["Text {person}."], "heldout": ["Write {person} a line."]}]}


def test_a_file_whose_sides_share_something_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "domain.json"

    def refuses(message: str, change) -> None:
        content = small_domain()
        change(content)
        path.write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(ValueError, match=re.escape(message)):
            intents.load(path)

    path.write_text(json.dumps(small_domain()), encoding="utf-8")
    assert intents.load(path) == small_domain()
    refuses("domain.json: template 'Call {person}.' is there twice",
            lambda content: content["intents"][1].update(heldout=["Call {person}."]))
    refuses("domain.json: label call is there twice", lambda content: content["intents"][1].update(label="call"))
    refuses("domain.json: person 'Ann' is there twice", lambda content: content["texts"]["heldout"].update(person=["Ann"]))
    refuses("domain.json: heldout have no texts for {person} of 'Get {person} on the line.'",
            lambda content: content["texts"]["heldout"].pop("person"))


def test_a_template_without_another_text_is_named(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "domain.json"
    path.write_text(json.dumps(small_domain()), encoding="utf-8")
    domain = intents.Domain("small", "domain.json", (2, 3))
    assert [item.answer for item in intents.requests(domain, "references", path)] == [" call", " text"]
    with pytest.raises(ValueError, match=r"template 'Get {person} on the line.' has no other text"):
        intents.requests(domain, "heldout", path)
