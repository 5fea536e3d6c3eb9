"""How many answers of each method are right, in runs of `c3po eval`: a Markdown table.
usage: right_answers.py RUN...    folders of runs; each is a row, its name the folder's"""

import run_tables


def table(runs: dict[str, list[dict]]) -> str:
    """Methods in the order in which they first come; a method that a run was not asked with is left blank there."""
    methods = list(dict.fromkeys(item["method"] for items in runs.values() for item in items))
    lines = [f"| run | {' | '.join(methods)} |", f"|---|{'---:|' * len(methods)}"]
    for name, items in runs.items():
        cells = []
        for method in methods:
            right = [bool(item["correct"]) for item in items if item["method"] == method]
            cells.append(f"{sum(right)} of {len(right)}" if right else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_tables.main(__doc__, table)
