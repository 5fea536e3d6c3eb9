#!/usr/bin/env python3
"""Which experts a model gives the last token of each prompt, before and after optimization: a table (CSV) and a heat map (SVG).
Needs c3po-client: pip install ./client/python
  expert_map.py prompts.txt --method ngd --collection science --csv experts.csv --svg experts.svg
"""

import argparse
import csv
import sys
import xml.sax.saxutils

from c3po_client import ArgumentError, CallError, Client, routed_rows

CELL = 10  # Pixels.
MARGIN = 40
BLUE, RED = (33, 102, 172), (178, 24, 43)


def last_token_experts(client, prompt, optimization):
    """[(layer, expert, weight)] of the prompt's last token. Its row runs again under a pathway, so that is what is told then."""
    with client.generate(prompt, sampling={"max_tokens": 1, "ignore_eos": True}, optimization=optimization,
                         return_routed_experts=True) as generation:
        generation.text()
        last = generation.summary.usage.prompt_tokens - 1
        rows = routed_rows(generation.routed_experts_so_far())
        return [(row.layer, row.expert, row.weight) for row in rows if row.position == last]


def table_of(client, prompts, optimization):
    """(prompt's line, when, layer, expert, weight) for each expert that was given."""
    for line, prompt in enumerate(prompts, 1):
        for when, options in (("before", {"method": "none"}), ("after", optimization)):
            for layer, expert, weight in last_token_experts(client, prompt, options):
                yield line, when, layer, expert, weight


def mean_weights(rows, when, prompts, layers, experts):
    """[layers][experts]: an expert that a prompt was not given counts 0."""
    means = [[0.0] * experts for _ in range(layers)]
    for _, of, layer, expert, weight in rows:
        if of == when:
            means[layer][expert] += weight / prompts
    return means


def shade(value, largest):
    """White at 0, blue below, red above."""
    share = 0 if largest == 0 else min(1.0, abs(value) / largest)
    red, green, blue = (round(255 - share * (255 - part)) for part in (BLUE if value < 0 else RED))
    return f"#{red:02x}{green:02x}{blue:02x}"


def heat_map(panels):
    """An SVG of one panel for each (title, [layers][experts]), below each other: a cell for each expert, darker by its size."""
    layers, experts = len(panels[0][1]), len(panels[0][1][0])
    height = layers * CELL + MARGIN
    text = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{experts * CELL + 2 * MARGIN}" height="{len(panels) * height + MARGIN}" '
            'font-family="sans-serif" font-size="11">']
    for index, (title, values) in enumerate(panels):
        top = index * height + MARGIN
        largest = max(abs(value) for row in values for value in row)
        text.append(f'<text x="{MARGIN}" y="{top - 8}">{xml.sax.saxutils.escape(title)}; darkest: {largest:.3g}</text>')
        for layer, row in enumerate(values):
            text.append(f'<text x="{MARGIN - 6}" y="{top + layer * CELL + 9}" text-anchor="end">{layer}</text>')
            for expert, value in enumerate(row):
                text.append(f'<rect x="{MARGIN + expert * CELL}" y="{top + layer * CELL}" width="{CELL}" height="{CELL}" '
                            f'fill="{shade(value, largest)}"><title>layer {layer}, expert {expert}: {value:.4f}</title></rect>')
    return "\n".join([*text, "</svg>", ""])


def read_prompts(path):
    with sys.stdin if path == "-" else open(path, encoding="utf-8") as file:
        prompts = [line.rstrip("\n") for line in file if line.strip()]
    if not prompts:
        raise ArgumentError(f"{path}: holds no prompt")
    return prompts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompts", help="file of a prompt a line; - is stdin")
    parser.add_argument("--server", help="HOST:PORT; default: $C3PO_SERVER, 127.0.0.1:50051")
    parser.add_argument("--collection", default="default")
    parser.add_argument("--method", help="none, mode, kernel, ngd; default: the collection's")
    parser.add_argument("--csv", required=True, help="the table, a row for each expert that a prompt was given")
    parser.add_argument("--svg", help="the heat map of the mean weights")
    arguments = parser.parse_args()
    optimization = {"collection": arguments.collection}
    if arguments.method:
        optimization["method"] = arguments.method
    try:
        prompts = read_prompts(arguments.prompts)
        with Client.from_environment(arguments.server) as client:
            model = client.server_info().model
            rows = list(table_of(client, prompts, optimization))
        with open(arguments.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("prompt", "when", "layer", "expert", "weight"))
            writer.writerows(rows)
        if arguments.svg:
            before, after = (mean_weights(rows, when, len(prompts), model.moe_layers, model.experts) for when in ("before", "after"))
            change = [[new - old for old, new in zip(*pair)] for pair in zip(before, after)]
            with open(arguments.svg, "w", encoding="utf-8") as file:
                file.write(heat_map([("before", before), ("after", after), ("after less before", change)]))
    except (ArgumentError, OSError) as error:
        print(f"expert_map.py: {error}", file=sys.stderr)
        return 2
    except CallError as error:
        print(f"expert_map.py: {error.description}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
