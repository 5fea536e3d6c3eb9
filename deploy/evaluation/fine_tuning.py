#!/usr/bin/env python3
"""What training on the reference set gives, beside re-mixing: the suite's held-out questions, asked after router
fine-tuning, prompt tuning, prefix tuning and fine-tuning of the last layers on a task's references.

  fine_tuning.py --out FOLDER [--server ADDRESS] [--task sst2,mrpc,...] [--methods none,router,...] [--limit 300]
                 [--references 300] [--seed 0] [--threads 1] [--model FOLDER] [--suite FOLDER]

Offline: torch computes, in float32 on the CPU (torch_model.py); a running c3pod of the same model only cuts texts into
tokens. adaptations.py says what each method trains. Common to all of them:
  loss        cross-entropy over the choices, C3PO's objective `choices`. Tasks are refused whose choices have several
              tokens, or whose metric is not raw.
  references  the first --references lines; a quarter of them, drawn by the seed, is held apart from training
  steps       Adam, batches of 8, one learning rate per method for every task: adaptations.py, with how they were chosen
  epochs      at most 16, as many as main_table.sh asks of `c3po refs tune`: the weights are kept that had the lowest
              loss on the references held apart, the start's among them; 4 epochs that do not lower it end the training
Held-out questions, the first --limit, are asked one at a time after that and decide nothing. "s per question" is the
whole forward pass of one, without any server; "training s" runs from tokens to the weights that are kept.

Progress goes to stderr, the table to stdout. FOLDER keeps every answer (recorded_run.py): a run that was ended goes on
there, and no training that ended is done again."""

import argparse
import hashlib
import json
import os
import pathlib
import sys
from typing import Callable, NamedTuple

_ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(_ROOT / "deploy" / "default_model"), str(_ROOT / "client" / "python")]
import make_stubs

sys.path[:0] = make_stubs.import_path()  # With which the clone's c3po_client is imported.

import torch_model  # Before torch: finds it.

import torch

import adaptations
import build
import paired_table
import pypi_package
import recorded_run
import reference_training
from c3po_client import C3poError, Client
from reference_training import Example, Question

TASKS = "sst2,mrpc,rte,cb,boolq"
SERVER_SECONDS = 60

Tokenize = Callable[[str, bool], list[int]]  # (text, add_special_tokens) -> ids.


class Settings(NamedTuple):
    model: pathlib.Path
    suite: pathlib.Path
    out: pathlib.Path
    tasks: list[str]
    methods: list[str]
    limit: int  # Held-out questions of a task.
    references: int  # Of a task.
    seed: int
    layers: int = 8  # That are trained, counted from the last.
    vectors: int = 8  # Of a soft prompt, and of a layer's prefix.


def say(message: str) -> None:
    print(f"[fine-tuning] {message}", file=sys.stderr, flush=True)


class ServerTokenizer:
    """Cuts texts as a c3pod does that serves a model of the same shape; connects when first called. C3poError: a call
    failed. ValueError: another model is served."""

    def __init__(self, address: str, shape: torch_model.Shape):
        self._address, self._shape, self._connection = address, shape, None

    def __call__(self, text: str, add_special_tokens: bool) -> list[int]:
        if self._connection is None:
            self._connection = self._connect()
        return list(self._connection.tokenize(text, add_special_tokens=add_special_tokens).ids) if text else []

    def _connect(self) -> Client:
        connection = Client.from_environment(self._address, timeout=SERVER_SECONDS)
        served = connection.server_info().model
        for name, here, there in (("layers", self._shape.layers, served.layers),
                                  ("experts", self._shape.experts, served.experts),
                                  ("hidden_size", self._shape.hidden, served.hidden_size),
                                  ("vocabulary_size", self._shape.vocabulary, served.vocabulary_size)):
            if here != there:
                raise ValueError(f"--server {self._address}: {name} of its model {served.name} is {there}, that of "
                                 f"--model is {here}")
        return connection


def token_of(choice: str, prompt: str, prompt_tokens: list[int], tokenize: Tokenize) -> int:
    """Cut together with the prompt, apart where that changes the prompt's own tokens: the server's rule. ValueError: it
    has several tokens, or none."""
    together = tokenize(prompt + choice, True)
    kept = together[:len(prompt_tokens)] == prompt_tokens
    tokens = together[len(prompt_tokens):] if kept else tokenize(choice, False)
    if len(tokens) != 1:
        raise ValueError(f"choices: {choice!r} has {len(tokens)} tokens; only choices of one token are trained here")
    return tokens[0]


def read_questions(path: pathlib.Path, limit: int, tokenize: Tokenize) -> list[Question]:
    """The first `limit` lines of a file of the suite. ValueError names the file, the line and the field."""
    questions = []
    for number, line in enumerate(path.read_bytes().splitlines()[:limit], 1):
        try:
            sample = json.loads(line)
            prompt = tokenize(sample["prompt"], True)
            choices = [token_of(choice, sample["prompt"], prompt, tokenize) for choice in sample["choices"]]
            if sample["answer"] not in sample["choices"]:
                raise ValueError("answer: is none of the choices")
            questions.append(Question(sample["id"], prompt, choices, sample["choices"].index(sample["answer"])))
        except KeyError as error:
            raise ValueError(f"{path}:{number}: has no {error.args[0]}") from error
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
    if not questions:
        raise ValueError(f"{path}: holds no question")
    return questions


def check_tasks(suite: pathlib.Path, tasks: list[str]) -> None:
    """ValueError: --task names one that the suite has not, or that is not scored by the plain log-likelihood."""
    metrics = {task["name"]: task["metric"] for task in json.loads((suite / "suite.json").read_bytes())["tasks"]}
    for task in tasks:
        if task not in metrics:
            raise ValueError(f"--task: {task} is not in {suite / 'suite.json'}, which has {', '.join(metrics)}")
        if metrics[task] != "raw":
            raise ValueError(f"--task: the metric of {task} is {metrics[task]}; only raw is scored here")


class TaskExamples:
    """Both sides of a task. The states that enter a layer are computed once for all methods that begin there."""

    def __init__(self, model: torch_model.Model, references: list[Question], heldout: list[Question]):
        self._model, self._sides = model, {"references": references, "heldout": heldout}
        self._entered: dict[tuple[str, int], list[Example]] = {}

    def side(self, name: str, first_layer: int) -> list[Example]:
        if (name, first_layer) not in self._entered:
            self._entered[name, first_layer] = reference_training.enter(self._model, self._sides[name], first_layer)
        return self._entered[name, first_layer]


def read_task(task: str, settings: Settings, model: torch_model.Model, tokenize: Tokenize) -> TaskExamples:
    folder = settings.suite / task
    references = read_questions(folder / "references.jsonl", settings.references, tokenize)
    if len(references) < 2:
        raise ValueError(f"--references: {task} has 1; one is held apart, so that 2 are needed")
    return TaskExamples(model, references, read_questions(folder / "heldout.jsonl", settings.limit, tokenize))


def train_and_ask(task: str, method: str, settings: Settings, model: torch_model.Model, examples: TaskExamples,
                  recorded: recorded_run.RecordedRun) -> None:
    layers = range(max(0, model.shape.layers - settings.layers), model.shape.layers)
    adaptation = adaptations.start(method, model, layers, settings.vectors, settings.seed)
    training = reference_training.Training()
    if adaptation.parameters > 0:
        training = reference_training.train(
            adaptation, examples.side("references", adaptation.first_layer), adaptations.LEARNING_RATES[method],
            settings.seed, lambda message: say(f"{task}, {method}: {message}"))
    answers = reference_training.ask(adaptation, examples.side("heldout", adaptation.first_layer))
    say(f"{task}, {method}: {sum(answer['correct'] for answer in answers)} of {len(answers)} held-out questions right")
    recorded.append({"task": task, "method": method, "parameters": adaptation.parameters, **training._asdict()},
                    [{"task": task, "method": method, **answer} for answer in answers])


def run(settings: Settings, tokenizer: Callable[[torch_model.Shape], Tokenize]) -> str:
    """Does what the folder does not hold yet, and returns the table. ValueError, OSError: name the file, field or
    flag."""
    check_tasks(settings.suite, settings.tasks)
    with open(settings.model / "model.safetensors", "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    recorded = recorded_run.RecordedRun(settings.out, {
        "model_sha256": digest, "limit": settings.limit, "references": settings.references, "seed": settings.seed,
        "layers": settings.layers, "vectors": settings.vectors, "learning_rates": adaptations.LEARNING_RATES,
        **reference_training.SETTINGS})
    left = {task: [method for method in settings.methods if not recorded.holds(task, method)]
            for task in settings.tasks}
    if any(left.values()):
        model = torch_model.load(settings.model)
        tokenize = tokenizer(model.shape)
        for task, methods in left.items():
            examples = read_task(task, settings, model, tokenize) if methods else None
            for method in methods:
                train_and_ask(task, method, settings, model, examples, recorded)
    return paired_table.table(settings.tasks, settings.methods, recorded.items, recorded.trainings)


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(text.split(",")))


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compares training on the reference set with the model as it is.")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the run, new or to go on with")
    parser.add_argument("--server", default=os.environ.get("C3PO_SERVER", "127.0.0.1:50051"), help="a c3pod's address")
    parser.add_argument("--task", type=_names, default=TASKS, help=f"of the suite; default {TASKS}")
    parser.add_argument("--methods", type=_names, default=",".join(adaptations.METHODS),
                        help=f"default {','.join(adaptations.METHODS)}")
    parser.add_argument("--limit", type=_positive, default=300, help="held-out questions of a task")
    parser.add_argument("--references", type=_positive, default=300, help="references of a task")
    parser.add_argument("--seed", type=int, default=0, help="of the references held apart, their order and the start")
    parser.add_argument("--threads", type=_positive, default=1, help="that torch computes on")
    parser.add_argument("--model", type=pathlib.Path, default=build.default_folder())
    parser.add_argument("--suite", type=pathlib.Path, default=pypi_package.cache_dir() / "suite")
    arguments = parser.parse_args()
    for method in arguments.methods:
        if method not in adaptations.METHODS:
            parser.error(f"argument --methods: {method} is none of {', '.join(adaptations.METHODS)}")
    if "none" not in arguments.methods:
        parser.error("argument --methods: none has to be among them: the others are compared with it")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    settings = Settings(arguments.model, arguments.suite, arguments.out, arguments.task, arguments.methods,
                        arguments.limit, arguments.references, arguments.seed)
    try:
        print(run(settings, lambda shape: ServerTokenizer(arguments.server, shape)))
    except C3poError as error:  # Begins with the address.
        print(f"fine_tuning.py: --server {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"fine_tuning.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
