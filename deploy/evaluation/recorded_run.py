"""The folder of a run of fine_tuning.py, which goes on where a kill ended it:

  settings.json     what every line was made with; another run's folder is refused
  items.jsonl       a line per question and method: {"task", "id", "method", "gold", "predicted", "correct", "seconds"},
                    the names of `c3po eval`; gold and predicted count the question's choices from 0
  trainings.jsonl   a line per task and method that is done: {"task", "method", "parameters", "training_seconds",
                    "epochs", "best_epoch", "loss_before", "loss_after"}, the losses over the references held apart

A training's line is written after its items, so items without one are of a training that did not end: they are taken
out when the folder is opened, and the training is done again."""

import json
import os
import pathlib
from typing import Any


def _read_lines(path: pathlib.Path, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """A last line that a kill cut short is left out. ValueError names the file and the line, and which of the keys is
    missing."""
    if not path.exists():
        return []
    lines = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            content = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        for key in keys:
            if key not in content:
                raise ValueError(f"{path}:{number}: has no {key}")
        lines.append(content)
    return lines


def _write_whole(path: pathlib.Path, lines: list[dict[str, Any]]) -> None:
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    os.replace(partial, path)


class RecordedRun:
    """Used by one process at a time."""

    def __init__(self, folder: pathlib.Path, settings: dict[str, Any]):
        """Makes the folder, or goes on with the run in it. ValueError: it holds a run of other settings, and which; a
        line cannot be read."""
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        recorded = _read_lines(folder / "settings.json", ())
        if recorded:
            for name in sorted(settings.keys() | recorded[0].keys()):
                if settings.get(name) != recorded[0].get(name):
                    raise ValueError(f"--out {folder}: holds a run whose {name} is {recorded[0].get(name)}, "
                                     f"not {settings.get(name)}")
        else:
            _write_whole(folder / "settings.json", [settings])
        trainings = _read_lines(folder / "trainings.jsonl", ("task", "method", "parameters", "training_seconds"))
        self.trainings = {(training["task"], training["method"]): training for training in trainings}
        items = _read_lines(folder / "items.jsonl", ("task", "method", "id", "correct", "seconds"))
        self.items = [item for item in items if (item["task"], item["method"]) in self.trainings]
        _write_whole(folder / "trainings.jsonl", trainings)
        _write_whole(folder / "items.jsonl", self.items)

    def holds(self, task: str, method: str) -> bool:
        return (task, method) in self.trainings

    def append(self, training: dict[str, Any], items: list[dict[str, Any]]) -> None:
        """Both are in the files, as far as a kill of this process goes, when it returns."""
        for name, lines in (("items.jsonl", items), ("trainings.jsonl", [training])):
            with open(self._folder / name, "a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
        self.items += items
        self.trainings[training["task"], training["method"]] = training
