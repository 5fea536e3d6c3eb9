"""Methods beside the model as it is, on the same questions, as a Markdown table.

The difference of accuracy is the mean over all questions of +1 (improved: wrong by `none`, right now), -1 (worsened) or
0, in points. Its interval of 95 % is Newcombe's (Statistics in Medicine 17, 1998, 2635-2650, method 10), what
client/eval/statistics.h computes."""

import math
from typing import Any, NamedTuple

import numpy as np

QUANTILE = 1.959963984540054  # Of 0.975, of the normal distribution.
_HEADER = ["", "method", "n", "accuracy", "difference [95 %]", "improved / worsened", "trained parameters",
           "training s", "s per question"]


class Outcomes(NamedTuple):
    """Of one method on one task."""

    items: int
    right: int
    improved: int
    worsened: int


class Interval(NamedTuple):
    value: float
    low: float
    high: float


def outcomes(items: list[dict[str, Any]], baseline: list[dict[str, Any]]) -> Outcomes:
    """Of recorded_run's items of one task. ValueError names a question that only one side has."""
    right, before = ({item["id"]: bool(item["correct"]) for item in side} for side in (items, baseline))
    for name in sorted(right.keys() ^ before.keys()):
        raise ValueError(f"items.jsonl: {name} was not asked with every method")
    return Outcomes(len(right), sum(right.values()), sum(right[name] > before[name] for name in right),
                    sum(right[name] < before[name] for name in right))


def proportion(right: int, items: int) -> Interval:
    """Wilson's score interval (1927), in [0, 1]."""
    share, square = right / items, QUANTILE * QUANTILE
    center, scale = share + square / (2 * items), 1 + square / items
    reach = QUANTILE * math.sqrt(share * (1 - share) / items + square / (4 * items * items))
    return Interval(share, max(0.0, (center - reach) / scale), min(1.0, (center + reach) / scale))


def _phi(both: float, first: float, second: float, neither: float) -> float:
    """Correlation of the two methods, with Newcombe's continuity correction; 0 where one is always or never right."""
    product = (both + first) * (second + neither) * (both + second) * (first + neither)
    if product == 0:
        return 0.0
    determinant = both * neither - first * second
    if determinant > 0:
        determinant = max(0.0, determinant - (both + first + second + neither) / 2)
    return determinant / math.sqrt(product)


def difference(tasks: list[Outcomes]) -> Interval:
    """In points, over all items of the tasks, pooled."""
    items = sum(task.items for task in tasks)
    if items == 0:
        return Interval(0.0, 0.0, 0.0)
    right, improved, worsened = (sum(task[i] for task in tasks) for i in (1, 2, 3))
    both = right - improved
    method, baseline = proportion(right, items), proportion(both + worsened, items)
    phi = _phi(both, improved, worsened, items - right - worsened)

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    value = (improved - worsened) / items
    low = value - reach(method.value - method.low, baseline.high - baseline.value)
    high = value + reach(method.high - method.value, baseline.value - baseline.low)
    return Interval(100 * value, 100 * max(-1.0, low), 100 * min(1.0, high))


def _row(scope: str, method: str, tasks: list[Outcomes], trainings: list[dict[str, Any]], seconds: list[float]) -> str:
    items = sum(task.items for task in tasks)
    interval = difference(tasks)
    compared = [f"{interval.value:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]",
                f"{sum(task.improved for task in tasks)} / {sum(task.worsened for task in tasks)}"]
    cells = [scope, method, f"{items:,}", f"{100 * sum(task.right for task in tasks) / max(1, items):.1f}",
             *(["", ""] if method == "none" else compared), f"{max(each['parameters'] for each in trainings):,}",
             f"{sum(each['training_seconds'] for each in trainings):,.0f}", f"{np.mean(seconds):.3f}"]
    return "| " + " | ".join(cells) + " |"


def table(tasks: list[str], methods: list[str], items: list[dict[str, Any]],
          trainings: dict[tuple[str, str], dict[str, Any]]) -> str:
    """A row per task and method, then per method over all tasks. Every method, `none` among them, has done every
    task."""
    by_training: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for item in items:
        by_training.setdefault((item["task"], item["method"]), []).append(item)
    lines = ["| " + " | ".join(_HEADER) + " |", "|---|---|" + "---:|" * (len(_HEADER) - 2)]
    for scope in ([task] for task in tasks) if len(tasks) == 1 else [*([task] for task in tasks), tasks]:
        for method in methods:
            answered = [by_training[task, method] for task in scope]
            lines.append(_row(
                scope[0] if len(scope) == 1 else "all", method,
                [outcomes(part, by_training[task, "none"]) for task, part in zip(scope, answered)],
                [trainings[task, method] for task in scope],
                [item["seconds"] for part in answered for item in part]))
    return "\n".join(lines)
