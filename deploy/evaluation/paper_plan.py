#!/usr/bin/env python3
"""What paper.sh asks about sizes and time.

  paper_plan.py model NAME [--config-only] the folder of NAME, a folder or an id of the Hugging Face hub
  paper_plan.py sizes ...                  questions and references of each benchmark that fit into the hours
  paper_plan.py plan ...                   what the full run needs: memory, disk, hours
  paper_plan.py next ...                   how many questions of each benchmark the next round asks; empty: it is over
  paper_plan.py cache CARD SUITE           MiB for the references' fixed states
  paper_plan.py layers COUNT               the paper's choices of layers, LABEL=LAYERS, for a model of COUNT MoE layers

CARD is what `c3po model inspect --json` prints. RATES are lines {"task", "stage", "count", "seconds"} of a trial: stage
import (references), tune (references once over), ask (questions, each by every method); and {"stage": "memory" or
"store", "bytes", "count"}. A stage that has no rate of its own takes the mean of the others' tasks."""

import argparse
import json
import pathlib
import sys
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "default_model"))

import paper_files

METHODS = 7  # Answers of a question.
TUNE_EPOCHS = 8  # At most, of `c3po refs tune`.
REFERENCES_MIN = 16  # `c3po refs tune` wants 10.
SETUP_SHARE = 1 / 3  # Of the hours, for references and router tuning.
FIRST_ROUND, GROWTH = 4, 4  # Questions of each benchmark; each round asks so many times as many as the one before.
SLACK = 0.95  # Of the time that is left, for questions that are longer than those before.
CPU_POSITIONS = 32768  # c3pod's --kv-cache-tokens on the CPU.
WORK_BYTES_MIN, NEIGHBOR_CACHE_MIB = 512 << 20, 4096
REFERENCE_POSITIONS = 256  # A generous length of one.
ANSWER_BYTES, QUESTION_BYTES = 900, 1500  # Lines of items.jsonl; of the suite's files.


class Rates(NamedTuple):
    """Seconds of one reference or question, by benchmark."""

    imported: dict[str, float]
    tuned: dict[str, float]  # Once over.
    asked: dict[str, float]
    memory_bytes: int | None  # Of the trial's server, at most.
    reference_bytes: float | None  # In the store.


def read_rates(path: pathlib.Path, tasks: list[str]) -> Rates:
    lines = [json.loads(line) for line in path.read_text().splitlines()]

    def by_task(stage: str) -> dict[str, float]:
        known = {line["task"]: line["seconds"] / line["count"] for line in lines if line["stage"] == stage and line["count"]}
        if not known:
            raise ValueError(f"{path}: has no rate of stage {stage}")
        return {task: known.get(task, sum(known.values()) / len(known)) for task in tasks}

    sizes = {line["stage"]: line for line in lines if line["stage"] in ("memory", "store")}
    store = sizes.get("store")
    return Rates(by_task("import"), by_task("tune"), by_task("ask"), sizes.get("memory", {}).get("bytes"),
                 store["bytes"] / store["count"] if store else None)


def find_model(name: str, config_only: bool = False) -> pathlib.Path:
    """config_only: its weights may be missing. ValueError says what is missing and how to bring it."""
    folder = pathlib.Path(name)
    is_id = name.count("/") == 1 and not name.startswith((".", "/")) and not folder.exists()
    if is_id:
        found = paper_files.snapshot("models", name)
        if found is None or not (found / "config.json").exists():
            raise ValueError(f"--model {name}: no such folder, and the Hugging Face cache {paper_files.hub_cache()} has no "
                             f"weights of it. Bring them with\n  hf download {name}\n(hf: {paper_files.hf_program()})")
        folder = found
    again = f"hf download {name}" if is_id else f"hf download ORG/NAME --local-dir {name}"
    if not (folder / "config.json").exists():
        raise ValueError(f"--model {name}: is no model folder: it has no config.json. Bring one with\n  {again}")
    if not config_only and not list(folder.glob("*.safetensors")):
        raise ValueError(f"--model {name}: has no weights, *.safetensors. Bring them with\n  {again}\n"
                         f"(hf: {paper_files.hf_program()})")
    return folder


def neighbor_cache_mib(card: dict[str, Any], suite: dict[str, Any]) -> int:
    """Room for the states of all references: keys and values of the critical layers, at the length that a long one has.
    At most half of the memory that is free, at least c3pod's part of the other scripts."""
    per_position = kv_position_bytes(card) * min(5, card["layers"]) / card["layers"]
    wanted = sum(task["references"] for task in suite["tasks"]) * REFERENCE_POSITIONS * per_position
    free = available_bytes()
    return int(max(NEIGHBOR_CACHE_MIB, min(wanted, free / 2 if free else wanted) / 2**20))


def available_bytes() -> int | None:
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def layer_choices(count: int) -> dict[str, str]:
    """The paper's figure 3: the first, middle or last layers, one, two or five of them; two first and three last; all.
    Choices of more layers than the model has, and those that are another one, are left out."""

    def layers(first: int, number: int) -> list[int]:
        return [layer for layer in range(first, first + number) if 0 <= layer < count]

    choices = {f"All{count}": layers(0, count)}
    for number in (number for number in (1, 2, 5) if number < count):
        for name, first in (("F", 0), ("M", (count - number) // 2), ("L", count - number)):
            choices[f"{name}{number}"] = layers(first, number)
    if count > 5:
        choices["F2L3"] = [*layers(0, 2), *layers(count - 3, 3)]
    distinct: dict[tuple[int, ...], str] = {}
    for name, chosen in choices.items():
        distinct.setdefault(tuple(chosen), name)
    return {name: ",".join(map(str, chosen)) for chosen, name in distinct.items()}


def next_limit(asked: int, most: int, sizes: list[int], seconds_left: float | None, rate: float | None) -> int | None:
    """Of each benchmark. rate: seconds of one question in the last round, None before the first. None: nothing is left,
    or no further question of each fits."""
    if asked >= most:
        return None
    wanted = min(most, max(FIRST_ROUND, asked * GROWTH))
    if seconds_left is None:
        return wanted
    if seconds_left <= 0:
        return None
    if rate is None:
        return min(most, FIRST_ROUND)
    fitting = int(SLACK * seconds_left / max(rate, 1e-9))
    while wanted > asked and sum(max(0, min(size, wanted) - asked) for size in sizes) > fitting:
        wanted -= max(1, (wanted - asked) // 16)
    return wanted if wanted > asked else None


def references_that_fit(suite: dict[str, Any], rates: Rates, hours: float) -> int:
    """Of each benchmark, at least REFERENCES_MIN: import and router tuning take a third of the hours."""
    most = max(task["references"] for task in suite["tasks"])

    def seconds(count: int) -> float:
        return sum(min(count, task["references"]) * (rates.imported[task["name"]] + TUNE_EPOCHS * rates.tuned[task["name"]])
                   for task in suite["tasks"])

    count = most
    while count > REFERENCES_MIN and seconds(count) > SETUP_SHARE * hours * 3600:
        count = max(REFERENCES_MIN, count * 15 // 16)
    return count


def _size(amount: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            return f"{amount:.1f} {unit}"
        amount /= 1000
    return ""


def stored_weights(card: dict[str, Any]) -> tuple[str, float]:
    """The type that c3pod computes in by default, and bytes on disk. Where no weights are there, by config.json."""
    stored = card["stored_bytes"]
    if stored:
        return ("bfloat16" if max(stored, key=stored.get) in ("BF16", "F16") else "float32"), sum(stored.values())
    config = json.loads((pathlib.Path(card["folder"]) / "config.json").read_text(encoding="utf-8"))
    dtype = "bfloat16" if config.get("torch_dtype", config.get("dtype")) in ("bfloat16", "float16") else "float32"
    return dtype, card["memory_bytes"][dtype]["weights"]


def kv_position_bytes(card: dict[str, Any]) -> float:
    """Keys and values of one position in all layers, in the weights' type, as c3pod keeps them by default."""
    return card["memory_bytes"][stored_weights(card)[0]]["kv_per_1000_positions"] / 1000


def plan(card: dict[str, Any], suite: dict[str, Any], rates: Rates | None, seconds_per_question: float | None,
         device: str, hours: float | None) -> str:
    tasks = suite["tasks"]
    questions, references = (sum(task[side] for task in tasks) for side in ("heldout", "references"))
    dtype, stored = stored_weights(card)
    weights = card["memory_bytes"][dtype]["weights"]
    kv = kv_position_bytes(card) * CPU_POSITIONS
    work = max(WORK_BYTES_MIN, weights / 4)
    cache = neighbor_cache_mib(card, suite) * 2**20
    reference_bytes = rates.reference_bytes if rates and rates.reference_bytes else (
        card["moe_layers"] * card["experts"] * 4 + 2 * QUESTION_BYTES)
    on_disk = references * reference_bytes
    answers = questions * METHODS * ANSWER_BYTES + (questions + references) * QUESTION_BYTES
    lines = [
        f"model       {card['folder']} ({card['family']}): {card['moe_layers']} MoE layers of {card['experts']} experts",
        f"settings    the last {min(5, card['moe_layers'])} layers, {min(20, card['experts'])} core experts, 3 neighbors, 10 "
        f"steps, Gaussian kernel, references that the model answers right",
        f"memory      {_size(weights + kv + work + cache)} on the {'GPU' if device == 'cuda' else 'CPU'}: weights "
        f"{_size(weights)} in {dtype}, KV cache {_size(kv)}, work {_size(work)}, states of references up to {_size(cache)}",
        f"disk        {_size(stored + on_disk + answers)}: weights {_size(stored)}{'' if card['stored_bytes'] else ', not here yet'}, "
        f"references {_size(on_disk)}, questions and answers {_size(answers)}"]
    if rates and rates.memory_bytes:
        lines.append(f"            the trial's server took {_size(rates.memory_bytes)} of main memory at most")
    counts = ", ".join(f"{task['title']} {task['heldout']:,}" for task in tasks)
    lines += [f"questions   {questions:,}, each by {METHODS} methods: {counts}",
              f"references  {references:,}: " + ", ".join(f"{task['title']} {task['references']:,}" for task in tasks)]
    if rates:
        imported = sum(task["references"] * rates.imported[task["name"]] for task in tasks) / 3600
        tuned = sum(TUNE_EPOCHS * task["references"] * rates.tuned[task["name"]] for task in tasks) / 3600
        asked = sum(task["heldout"] * rates.asked[task["name"]] for task in tasks) / 3600
        total = imported + tuned + asked
        lines.append(f"hours       {total:.2f}: references {imported:.2f}, router tuning up to {tuned:.2f}, questions {asked:.2f}; "
                     f"by a short trial on this machine")
    else:
        total = questions * (seconds_per_question or 0) / 3600
        lines.append(f"hours       {total:.2f} for the questions, at {seconds_per_question:g} s each by all methods, as stated; "
                     f"references and router tuning come on top")
    if hours is not None and hours < total:
        lines.append(f"            in {hours:g} hours about {100 * hours / total:.0f} % of it fit: --hours {hours:g} asks as many "
                     f"questions of each benchmark as fit, and says what it left")
    return "\n".join(lines) + "\n"


def _read(path: str) -> dict[str, Any]:
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))


def _run(arguments: argparse.Namespace) -> str:
    if arguments.command == "model":
        return f"{find_model(arguments.name, arguments.config_only)}\n"
    if arguments.command == "layers":
        return "".join(f"{name}={layers}\n" for name, layers in layer_choices(arguments.count).items())
    suite = _read(arguments.suite)
    names = [task["name"] for task in suite["tasks"]]
    if arguments.command == "cache":
        return f"{neighbor_cache_mib(_read(arguments.card), suite)}\n"
    if arguments.command == "sizes":
        return f"{references_that_fit(suite, read_rates(arguments.rates, names), arguments.hours)}\n"
    if arguments.command == "plan":
        rates = read_rates(arguments.rates, names) if arguments.rates else None
        return plan(_read(arguments.card), suite, rates, arguments.seconds_per_question, arguments.device, arguments.hours)
    sizes = [task["heldout"] for task in suite["tasks"]]
    most = min(max(sizes), arguments.most or max(sizes))
    limit = next_limit(arguments.asked, most, sizes, arguments.seconds_left, arguments.rate)
    return "" if limit is None else f"{limit}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Sizes and times of paper.sh.")
    commands = parser.add_subparsers(dest="command", required=True)
    model = commands.add_parser("model")
    model.add_argument("name")
    model.add_argument("--config-only", action="store_true")
    commands.add_parser("layers").add_argument("count", type=int)
    cache = commands.add_parser("cache")
    cache.add_argument("card")
    cache.add_argument("suite")
    sizes = commands.add_parser("sizes")
    sizes.add_argument("suite")
    sizes.add_argument("--rates", type=pathlib.Path, required=True)
    sizes.add_argument("--hours", type=float, required=True)
    planned = commands.add_parser("plan")
    planned.add_argument("card")
    planned.add_argument("suite")
    planned.add_argument("--rates", type=pathlib.Path)
    planned.add_argument("--seconds-per-question", type=float)
    planned.add_argument("--device", default="cpu")
    planned.add_argument("--hours", type=float)
    following = commands.add_parser("next")
    following.add_argument("suite")
    following.add_argument("--asked", type=int, required=True)
    following.add_argument("--most", type=int)
    following.add_argument("--seconds-left", type=float)
    following.add_argument("--rate", type=float)
    try:
        print(_run(parser.parse_args()), end="")
    except (ValueError, KeyError, OSError) as error:
        print(f"paper.sh: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
