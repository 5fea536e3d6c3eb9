"""What the tables over runs of `c3po eval` share: reading runs, and being a command."""

import json
import pathlib
import sys
from typing import Callable


# Rows that `c3po eval` makes of other answers (client/eval/label_baselines.h).
BASELINES = ("majority", "batch-offset", "label-offset")


def read_items(folder: str) -> list[dict]:
    """The lines of the run's items.jsonl, then those of baselines.jsonl, which runs of earlier versions do not have."""
    lines = []
    for name in ("items.jsonl", "baselines.jsonl"):
        path = pathlib.Path(folder) / name
        if name == "baselines.jsonl" and not path.exists():
            continue
        with open(path, encoding="utf-8") as file:
            lines += [json.loads(line) for line in file if line.strip()]
    return lines


def main(usage: str, table: Callable[[dict[str, list[dict]]], str]) -> None:
    """Prints `table` over the runs whose folders are the arguments, by the folders' names."""
    if len(sys.argv) < 2:
        sys.exit(usage)
    print(table({pathlib.Path(folder).name: read_items(folder) for folder in sys.argv[1:]}), end="")
