"""How many answers each method leaves as the model alone gives them, in runs of `c3po eval` that generate: a Markdown table.
usage: unchanged_answers.py RUN...    folders of runs; each is a row, its name the folder's"""

import collections

import run_tables


def count(items: list[dict]) -> dict[str, tuple[int, int, int]]:
    """By method that was asked, other than none: prompts, answers unchanged, prompts that the gate left alone. ValueError names a prompt that
    `none` was not asked."""
    own = {(item["task"], item["id"]): item.get("text", "") for item in items if item["method"] == "none"}
    counts = collections.defaultdict(lambda: [0, 0, 0])
    for item in items:
        if item["method"] == "none" or item["method"] in run_tables.BASELINES:
            continue  # A baseline of labels writes nothing.
        key = (item["task"], item["id"])
        if key not in own:
            raise ValueError(f"items.jsonl: {item['id']} was not asked with the method none")
        row = counts[item["method"]]
        row[0] += 1
        row[1] += item.get("text", "") == own[key]
        row[2] += item.get("gate", "") != "applied"
    return {method: tuple(row) for method, row in counts.items()}


def table(runs: dict[str, list[dict]]) -> str:
    lines = ["| run | method | prompts | unchanged | left alone by the gate |", "|---|---|---:|---:|---:|"]
    totals = collections.defaultdict(lambda: [0, 0, 0])
    for name, items in runs.items():
        for method, row in count(items).items():
            lines.append(_line(name, method, row))
            for i, value in enumerate(row):
                totals[method][i] += value
    if len(runs) > 1:
        lines += [_line("all", method, row) for method, row in totals.items()]
    return "\n".join(lines) + "\n"


def _line(name: str, method: str, row) -> str:
    prompts, unchanged, alone = row
    return f"| {name} | {method} | {prompts} | {unchanged} ({100 * unchanged / prompts:.1f} %) | {alone} |"


if __name__ == "__main__":
    run_tables.main(__doc__, table)
