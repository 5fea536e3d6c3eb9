"""What the tables over runs of `c3po eval` share: reading runs, and being a command."""

import json
import pathlib
import sys
from typing import Callable


def read_items(folder: str) -> list[dict]:
    """The lines of the run's items.jsonl."""
    with open(pathlib.Path(folder) / "items.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def main(usage: str, table: Callable[[dict[str, list[dict]]], str]) -> None:
    """Prints `table` over the runs whose folders are the arguments, by the folders' names."""
    if len(sys.argv) < 2:
        sys.exit(usage)
    print(table({pathlib.Path(folder).name: read_items(folder) for folder in sys.argv[1:]}), end="")
