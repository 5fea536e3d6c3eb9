"""Methods beside the model as it is, on the same questions, as a Markdown table.

The difference of accuracy is the mean over all questions of +1 (improved: wrong by `none`, right now), -1 (worsened) or
0, in points. Its interval is the 95 % percentile bootstrap, questions drawn with replacement within each task, 10,000
resamples, a fixed seed: what client/eval/statistics.h computes, and so with other random numbers."""

from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 10_000
SEED = 2504_07964
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


def difference(tasks: list[Outcomes]) -> Interval:
    """In points, over all items of the tasks. Of n items with p improved and m worsened, a resample has
    Binomial(n, p/n) improved and, given a of them, Binomial(n - a, m/(n - p)) worsened: the distribution of n single
    draws."""
    generator = np.random.default_rng(SEED)
    sums = np.zeros(RESAMPLES)
    for task in tasks:
        improved = generator.binomial(task.items, task.improved / max(1, task.items), RESAMPLES)
        others = task.items - task.improved
        sums += improved - generator.binomial(task.items - improved, task.worsened / max(1, others))
    scale = 100 / max(1, sum(task.items for task in tasks))
    low, high = np.quantile(sums, [0.025, 0.975])
    return Interval(scale * sum(task.improved - task.worsened for task in tasks), scale * low, scale * high)


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
