"""Medians, ratios and marks as Markdown, and what machine they are of."""

import os
import pathlib
import platform
import statistics
import typing

import measurement
import peer_catalog

INSTRUCTIONS = ["avx2", "avx512f", "avx512_bf16", "amx_bf16"]


class Mark(typing.NamedTuple):
    """What this project's figure over a peer's must be: at least `bound` where higher is better, else at most."""
    figure: measurement.Figure
    peer: str  # Or "best": of all that are there.
    bound: float


# By the weights' bits.
MARKS = {16: [Mark(measurement.DECODE, "llama.cpp", 1.3), Mark(measurement.STREAMS_8, "best", 1.5), Mark(measurement.STREAMS_32, "best", 1.5),
              Mark(measurement.PREFILL_LONG, "vllm", 1.0), Mark(measurement.PREFILL_LONG, "llama.cpp", 3.0),
              Mark(measurement.FIRST_TOKEN, "best", 1.0)],
         8: [Mark(measurement.DECODE, "llama.cpp", 1.3)],
         4: [Mark(measurement.DECODE, "llama.cpp", 1.3), Mark(measurement.STREAMS_8, "llama.cpp", 2.0),
             Mark(measurement.STREAMS_32, "llama.cpp", 2.0), Mark(measurement.PREFILL_LONG, "llama.cpp", 2.4),
             Mark(measurement.RESIDENT_END, "llama.cpp", 1.0)]}
RESIDENT_BEYOND_WEIGHTS_MAX = 150  # MB, the KV cache's budget aside.
C3PO_SHARE_MAX = 0.12  # Of a request without it.
SLOWDOWN_MAX = 2.2  # Beside a competitor that takes a whole core.
RATE_WHILE_OPTIMIZING_MIN = 0.8  # Of the rate without.


def medians(values: measurement.Values) -> dict:
    return {peer: {figure: statistics.median(rounds) for figure, rounds in figures.items()} for peer, figures in values.items()}


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def ratio(value: float) -> str:
    return f"{value:.2f}x"


def row(cells) -> str:
    return "| " + " | ".join(cells) + " |"


def table(values: measurement.Values, weights_bytes: int | None) -> str:
    """One row a figure: every peer's median, then this project's over each other's. A figure that was not measured stays blank.
    `weights_bytes`: those of all; None: each has its own."""
    middle = medians(values)
    peers = [peer for peer in peer_catalog.NAMES if peer in values]
    others = [peer for peer in peers if peer != "c3po"]
    shown = [peer_catalog.NAMES[peer] for peer in peers]
    lines = [row(["median of each", *shown, *(f"C3PO / {peer_catalog.NAMES[peer]}" for peer in others)]),
             "|---|" + "---|" * (len(peers) + len(others))]
    for figure in measurement.FIGURES:
        own = middle.get("c3po", {}).get(figure.name)
        cells = [f"{figure.name}, {figure.unit}"]
        cells += [number(middle[peer][figure.name]) if figure.name in middle[peer] else "" for peer in peers]
        cells += [ratio(own / middle[peer][figure.name]) if own and figure.name in middle[peer] else "" for peer in others]
        lines.append(row(cells))
    if weights_bytes is not None:
        lines.append(row(["weights, MB", number(weights_bytes / 1e6), *[""] * (len(peers) - 1 + len(others))]))
    return "\n".join(lines)


def verdict(reached: bool, miss: str) -> str:
    return "reached" if reached else f"missed by {miss}"


def memory_mark(own: dict, bytes_of: dict) -> str:
    """`bytes_of`: weights, encoder, kv. The sentence encoder's weights are weights too, which no peer holds."""
    weights = (bytes_of["weights"] + bytes_of["encoder"]) / 1e6
    loaded = own[measurement.RESIDENT_LOADED.name] - weights  # Nothing has touched the cache yet.
    end = own[measurement.RESIDENT_END.name] - weights - bytes_of["kv"] / 1e6  # All of it, at most, has been.
    beyond = max(loaded, end)
    return row([f"resident beyond weights, the sentence encoder's {bytes_of['encoder'] / 1e6:,.0f} MB among them, and the KV cache's "
                f"{bytes_of['kv'] / 1e6:,.0f} MB: ≤ {RESIDENT_BEYOND_WEIGHTS_MAX} MB",
                f"{loaded:,.0f} MB after load, {end:,.0f} MB at the end",
                verdict(beyond <= RESIDENT_BEYOND_WEIGHTS_MAX, f"{beyond - RESIDENT_BEYOND_WEIGHTS_MAX:,.0f} MB")])


def marks_table(values: measurement.Values, bytes_of: dict | None, cost: dict, bits: int = 16) -> str:
    """The marks of weights of so many bits whose peers are there, each with what was measured. `bytes_of`: as memory_mark's, or None."""
    middle = medians(values)
    own = middle.get("c3po", {})
    lines = [row(["mark", "measured", ""]), "|---|---|---|"]
    for mark in MARKS[bits]:
        name, better = mark.figure.name, max if mark.figure.higher_is_better else min
        rivals = {peer: figures[name] for peer, figures in middle.items() if peer != "c3po" and name in figures}
        if mark.peer != "best":
            rivals = {peer: value for peer, value in rivals.items() if peer == mark.peer}
        if not rivals or name not in own:
            continue
        peer = better(rivals, key=rivals.get)
        measured = own[name] / rivals[peer]
        reached = measured >= mark.bound if mark.figure.higher_is_better else measured <= mark.bound
        sign = "≥" if mark.figure.higher_is_better else "≤"
        whose = f"the best peer ({peer_catalog.NAMES[peer]})" if mark.peer == "best" else peer_catalog.NAMES[peer]
        miss = f"{abs(measured / mark.bound - 1):.0%}"
        lines.append(row([f"{name}: {sign} {mark.bound}x {whose}", ratio(measured), verdict(reached, miss)]))
    if measurement.DECODE_BESIDE.name in own:
        slowdown = own[measurement.DECODE.name] / own[measurement.DECODE_BESIDE.name]
        lines.append(row([f"decode alone over decode beside a competitor: ≤ {SLOWDOWN_MAX}x", ratio(slowdown),
                          verdict(slowdown <= SLOWDOWN_MAX, f"{slowdown / SLOWDOWN_MAX - 1:.0%}")]))
    if bytes_of and measurement.RESIDENT_END.name in own:
        lines.append(memory_mark(own, bytes_of))
    if cost:
        share = added(cost, "again") / statistics.median(cost["none"])
        lines.append(row([f"C3PO's added time, neighbors known: ≤ {C3PO_SHARE_MAX:.0%} of the request without", f"{share:.0%}",
                          verdict(share <= C3PO_SHARE_MAX, f"{share - C3PO_SHARE_MAX:.0%} of it")]))
        kept = statistics.median(beside / alone for beside, alone in zip(cost["streams_beside"], cost["streams"]))
        lines.append(row([f"decode rate of 8 streams while one caller optimizes: ≥ {RATE_WHILE_OPTIMIZING_MIN:.0%} of that without",
                          f"{kept:.0%}", verdict(kept >= RATE_WHILE_OPTIMIZING_MIN, f"{RATE_WHILE_OPTIMIZING_MIN - kept:.0%} of it")]))
    return "\n".join(lines)


def added(cost: dict, use: str) -> float:
    """Milliseconds, the median of what a round's request took longer than the one without in the same round."""
    return statistics.median(with_it - without for with_it, without in zip(cost[use], cost["none"]))


def cost_table(cost: dict) -> str:
    none = statistics.median(cost["none"])
    lines = [row(["C3PO's cost per request", "ms", "of the request without"]), "|---|---|---|",
             row(["request without: 64-token prompt, 64 new tokens, one stream", number(none), ""])]
    for use, what in (("first", "added, neighbors seen for the first time"), ("again", "added, neighbors known")):
        lines.append(row([what, number(added(cost, use)), f"{added(cost, use) / none:.0%}"]))
    for stage, what in (("embed", "embedding the prompt"), ("retrieval", "finding neighbors"), ("optimization", "10 steps")):
        value = statistics.median(cost[stage])
        lines.append(row([f"of it {what}", number(value), f"{value / none:.0%}"]))
    return "\n".join(lines)


def machine() -> str:
    info = pathlib.Path("/proc/cpuinfo").read_text()
    fields = dict(reversed([line.split(":", 1) for line in info.splitlines() if ":" in line]))
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = fields.get("flags", "").split()
    gigabytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    instructions = ", ".join(f"{'' if name in flags else 'no '}{name}" for name in INSTRUCTIONS)
    load = os.getloadavg()[0]
    which = f"family {fields.get('cpu family')}, model {fields.get('model')}; {instructions}"
    return (f"{len(os.sched_getaffinity(0))} cores of {fields.get('model name', platform.machine())} ({which}), {gigabytes:.0f} GiB, "
            f"Linux {platform.release()}; load average before {load:.1f}")
