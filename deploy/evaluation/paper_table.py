#!/usr/bin/env python3
"""The tables of paper.sh as Markdown: accuracy by method and benchmark beside the figures of the paper
(paper_figures.json), what each method adds to the base model, and the ablations.

  paper_table.py FOLDER --architecture NAME     of a folder of paper.sh: suite/, report.json, references, tuned/, ablations/*.json

A method's row is found by its label in the report's JSON. A method that is not known here has a row by its label, so
that what `c3po eval` adds joins the table. A cell is blank where nothing was measured or the paper says nothing."""

import argparse
import json
import pathlib
import sys
from typing import Any, NamedTuple

FIGURES = pathlib.Path(__file__).resolve().parent / "paper_figures.json"
_MARK = "\\*"  # No shift was stored.


class Cell(NamedTuple):
    """In percent. difference: to the base model, in points, or None."""

    value: float
    low: float
    high: float
    difference: tuple[float, float, float] | None = None


Cells = dict[str, dict[str, Cell]]  # Method -> task -> figures.


def _percent(estimate: dict[str, float]) -> tuple[float, float, float]:
    return 100 * estimate["value"], 100 * estimate["low"], 100 * estimate["high"]


def cells_of(report: dict[str, Any]) -> tuple[Cells, dict[str, int]]:
    """By method and task, and the questions of each task that every method of it answered."""
    cells: Cells = {}
    items = {}
    for scope in report["tasks"]:
        items[scope["name"]] = scope["items"]
        for method in scope["methods"] if scope["items"] else []:
            difference = _percent(method["difference"]) if "difference" in method else None
            cells.setdefault(method["label"], {})[scope["name"]] = Cell(*_percent(method["accuracy"]), difference)
    return cells, items


def mean(values: list[float | None]) -> float | None:
    """Of the benchmarks, each counting the same, as the paper's; None where one is missing."""
    return sum(values) / len(values) if values and None not in values else None


def _number(value: float | None, mark: str = "") -> str:
    return "" if value is None else f"{value:.1f}{mark}"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _head(cells: list[str], texts: int) -> list[str]:
    return [_row(cells), "|" + "---|" * texts + "---:|" * (len(cells) - texts)]


def accuracy_table(figures: dict[str, Any], tasks: list[dict[str, Any]], cells: Cells, items: dict[str, int],
                   architecture: str, untuned: set[str]) -> list[str]:
    """untuned: tasks whose router shift never lowered the loss of references held apart, so that none was stored."""
    published = {name: model["table"] for name, model in figures["models"].items() if architecture in model["architectures"]}
    published = published or {name: model["table"] for name, model in figures["models"].items()}
    names = [task["name"] for task in tasks]
    lines = _head(["method", "whose", *(f"{task['title']} (n {items.get(task['name'], 0):,})" for task in tasks), "mean"], 2)
    methods = [*figures["methods"], *(label for label in cells if label not in figures["methods"])]
    base = cells.get("none", {})
    for method in methods:
        own = {name: cells.get(method, {}).get(name) for name in names}
        marks = {name: "" for name in names}
        if method == "prior":
            for name in untuned & set(names):
                own[name], marks[name] = base.get(name), _MARK
        values = [own[name].value if own[name] else None for name in names]
        title = figures["methods"].get(method, method)
        lines.append(_row([title, "ours", *(_number(value, marks[name]) for value, name in zip(values, names)),
                           _number(mean(values))]))
        for model, table in published.items():
            if method in table:
                by_task = dict(zip(figures["benchmarks"], table[method]))
                lines.append(_row(["", f"paper, {model}", *(_number(by_task[name]) for name in names),
                                   _number(by_task["mean"])]))
    if untuned:
        lines += ["", f"{_MARK} No shift lowered the loss of the references held apart, so none was stored: the base model's."]
    return lines


def difference_table(figures: dict[str, Any], tasks: list[dict[str, Any]], cells: Cells) -> list[str]:
    lines = _head(["method", *(task["title"] for task in tasks)], 1)
    for method, by_task in cells.items():
        if not any(cell.difference for cell in by_task.values()):
            continue
        texts = []
        for task in tasks:
            cell = by_task.get(task["name"])
            texts.append(f"{cell.difference[0]:+.1f} [{cell.difference[1]:+.1f}, {cell.difference[2]:+.1f}]"
                         if cell and cell.difference else "")
        lines.append(_row([figures["methods"].get(method, method), *texts]))
    return lines


def ablation_tables(figures: dict[str, Any], tasks: list[dict[str, Any]], reports: dict[str, dict[str, Any]]) -> list[str]:
    """reports: by variable. A point is a method that is not the base model, labelled POINT or VARIABLE=POINT."""
    lines = []
    known = figures["ablations"]
    for variable in [name for name in known if name in reports] + sorted(reports.keys() - known.keys()):
        of_paper = known.get(variable, {})
        points = of_paper.get("points", {})
        cells, items = cells_of(reports[variable])
        lines += ["", f"**{of_paper.get('title', variable)}**", ""]
        lines += _head(["point", *(f"{task['title']} (n {items.get(task['name'], 0):,})" for task in tasks), "mean",
                        f"paper: {known['of']}"], 1)
        own = {label.removeprefix(f"{variable}="): by_task for label, by_task in cells.items()}
        for point in [*own, *(each for each in points if each not in own)]:
            values = [own[point][task["name"]].value if point in own and task["name"] in own[point] else None
                      for task in tasks]
            paper = known["base"] if point == "none" else points.get(point)
            lines.append(_row(["base model" if point == "none" else point, *map(_number, values), _number(mean(values)),
                               "" if paper is None else f"{paper:.2f}"]))
        if "note" in of_paper:
            lines += ["", f"{of_paper['note']}."]
    return lines


def notes(figures: dict[str, Any], suite: dict[str, Any], items: dict[str, int], references: int) -> list[str]:
    """references: of each benchmark at most."""
    lines = ["", f"Paper: {figures['source']}. What differs from it here:",
             "- References are other splits of the benchmark itself, or halves of one: the paper takes other datasets (BIG-Bench and "
             "SuperGLUE for MMLU; CommonsenseQA and SocialIQA for HellaSwag and PIQA; OpenBookQA and SciQ for ARC; KnowRef for "
             "WinoGrande).",
             "- Neighbors are found by the server's sentence encoder, and a step is a plain gradient of rate 0.1: `--preset paper`.",
             "- Router tuning is not in the paper; prefix and soft prompt tuning are not measured here."]
    lines += [f"- {task['title']}: references / questions are of {task['split']}; {min(task['references'], references):,} references."
              for task in suite["tasks"]]
    left = [f"{task['title']} {task['heldout'] - items.get(task['name'], 0):,} of {task['heldout']:,}"
            for task in suite["tasks"] if items.get(task["name"], 0) < task["heldout"]]
    if left:
        lines.append(f"- Left, or among the references, or not answered by every method: {', '.join(left)}. The same command "
                     f"goes on.")
    return lines


def render(folder: pathlib.Path, architecture: str) -> str:
    """ValueError, KeyError: a file is not what paper.sh writes."""
    figures, suite, report = (json.loads(path.read_text(encoding="utf-8"))
                              for path in (FIGURES, folder / "suite" / "suite.json", folder / "report.json"))
    cells, items = cells_of(report)
    untuned = {path.name for path in (folder / "tuned").glob("*") if path.read_text().strip() == "none"}
    lines = ["# The paper's table", "", *report.get("reading", []), ""]
    lines += accuracy_table(figures, suite["tasks"], cells, items, architecture, untuned)
    lines += ["", "Points above the base model, with 95 % intervals over the questions:", ""]
    lines += difference_table(figures, suite["tasks"], cells)
    lines += notes(figures, suite, items, int((folder / "references").read_text()))
    reports = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "ablations").glob("*.json"))}
    if reports:
        lines += ["", "# Its ablations, of gradient descent", *ablation_tables(figures, suite["tasks"], reports)]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Prints the tables of a folder of paper.sh as Markdown.")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--architecture", default="", help="of the model, as its config.json names it")
    arguments = parser.parse_args()
    try:
        print(render(arguments.folder, arguments.architecture), end="")
    except (OSError, ValueError, KeyError) as error:
        print(f"paper_table.py: {arguments.folder}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
