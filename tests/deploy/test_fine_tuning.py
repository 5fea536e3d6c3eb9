"""Tests of the comparison with fine-tuning, on a random model of two layers with made-up tokens: no server and no real
model is asked.  Need numpy, pytest and the torch of deploy/install_deps.sh.
Run: pytest tests/deploy/test_fine_tuning.py"""

import json
import pathlib
import random
import re
import sys
import types
import zlib
from typing import Callable

import numpy as np
import pytest

from tiny_mixtral import (EXPERTS, HEAD_DIM, HEADS, HIDDEN, KV_HEADS, NEURONS, VOCABULARY, folder, last_logits, model,
                          random_sequences, torch)

import adaptations
import fine_tuning
import paired_table
import recorded_run
import reference_training
import torch_model

METHODS = ["none", "router", "prompt", "prefix", "full"]
WORDS = ["sun", "rain", "tree", "lamp", "door", "song"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


# --- Training ---

def examples_for(model: torch_model.Model, first_layer: int, count: int = 12) -> list[reference_training.Example]:
    generator = random.Random(11)
    prompts = [[generator.randrange(VOCABULARY) for _ in range(generator.randint(2, 9))] for _ in range(count)]
    questions = [reference_training.Question(f"q{i}", prompt, [3, 4, 5][:2 + i % 2], i % 2)
                 for i, prompt in enumerate(prompts)]
    return reference_training.enter(model, questions, first_layer)


def start(method: str, model: torch_model.Model, vectors: int = 3, layers: range = range(1, 2)) -> adaptations.Adaptation:
    return adaptations.start(method, model, layers, vectors, seed=4)


PARAMETERS = {"router": EXPERTS * HIDDEN, "prompt": 3 * HIDDEN, "prefix": 2 * 3 * KV_HEADS * HEAD_DIM,
              "full": 2 * HIDDEN + EXPERTS * HIDDEN + 2 * HIDDEN * (HEADS + KV_HEADS) * HEAD_DIM
                      + 3 * EXPERTS * NEURONS * HIDDEN}


@pytest.mark.parametrize("method", METHODS[1:])
def test_training_lowers_the_loss_and_changes_nothing_else(model: torch_model.Model, method: str) -> None:
    kept = [tensor.clone() for layer in model.layers for tensor in layer] + [model.embedding.clone()]
    adaptation = start(method, model)
    assert adaptation.parameters == PARAMETERS[method]
    examples = examples_for(model, adaptation.first_layer)
    started = [tensor.detach().clone() for tensor in adaptation.trained]
    optimizer = torch.optim.Adam(adaptation.trained, lr=0.02)
    before = reference_training.mean_loss(adaptation, examples)
    for _ in range(15):
        reference_training.train_epoch(adaptation, optimizer, examples)
    assert reference_training.mean_loss(adaptation, examples) < before - 0.05
    assert all(not torch.equal(tensor, was) for tensor, was in zip(adaptation.trained, started))
    assert all(torch.equal(tensor, was) for tensor, was in
               zip([tensor for layer in model.layers for tensor in layer] + [model.embedding], kept))


@pytest.mark.parametrize("method", ["router", "full"])
def test_untrained_weights_answer_as_the_model_does(model: torch_model.Model, method: str) -> None:
    sequences = random_sequences(8)
    np.testing.assert_array_equal(last_logits(start(method, model).model, sequences), last_logits(model, sequences))


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_zero_vectors_are_the_model_as_it_is(model: torch_model.Model, method: str) -> None:
    adaptation = start(method, model, vectors=0)
    assert adaptation.parameters == 0
    sequences = random_sequences(9)
    np.testing.assert_allclose(last_logits(adaptation.model, sequences), last_logits(model, sequences), atol=1e-6)


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_vectors_start_from_tokens_of_the_vocabulary(model: torch_model.Model, method: str) -> None:
    adaptation, other = start(method, model, layers=range(0, 2)), adaptations.start(method, model, range(0, 2), 3, seed=5)
    assert not torch.equal(adaptation.trained[0], other.trained[0])
    rows = adaptation.model.soft_prompt if method == "prompt" else adaptation.model.prefixes[0].values
    every = model.embedding
    if method == "prefix":  # Values of layer 0 depend on the token alone.
        every = torch_model.projections(model, 0, model.embedding)[2]
    for row in rows:
        assert torch.isclose(every, row.detach(), atol=1e-6).flatten(1).all(1).any()


def test_gradient_does_not_depend_on_how_a_batch_is_cut(model: torch_model.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    for tokens_max, expected in ((1000, 1), (10, None), (1, 8)):
        monkeypatch.setattr(reference_training, "TOKENS_MAX", tokens_max)
        adaptation = start("router", model)
        examples = examples_for(model, 1, count=8)
        cut = reference_training.pieces(examples)
        assert [example for piece in cut for example in piece] == examples and all(cut)
        assert expected is None or len(cut) == expected
        assert all(len(piece) == 1 or sum(len(each.entering) for each in piece) <= tokens_max for piece in cut)
        reference_training.train_epoch(adaptation, torch.optim.SGD(adaptation.trained, lr=0.0), examples)
        gradients.append(adaptation.trained[0].grad.clone())
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-4, atol=1e-6)


def test_step_takes_the_gradient_of_its_own_batch(model: torch_model.Model) -> None:
    examples = examples_for(model, 1, count=2 * reference_training.BATCH)
    gradients = []
    for part in (examples, examples[reference_training.BATCH:]):
        adaptation = start("router", model)
        reference_training.train_epoch(adaptation, torch.optim.SGD(adaptation.trained, lr=0.0), part)
        gradients.append(adaptation.trained[0].grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_training_that_only_does_harm_keeps_the_start(model: torch_model.Model) -> None:
    adaptation = start("full", model)
    started = [tensor.detach().clone() for tensor in adaptation.trained]
    lines: list[str] = []
    training = reference_training.train(adaptation, examples_for(model, 1), 1e3, seed=0, report=lines.append)
    assert (training.epochs, training.best_epoch) == (reference_training.PATIENCE, 0)
    assert training.loss_after == training.loss_before and training.training_seconds > 0
    assert all(torch.equal(tensor, was) for tensor, was in zip(adaptation.trained, started))
    assert len(lines) == 1 + training.epochs and lines[0].startswith("9 references and 3 apart")


def test_training_keeps_the_epoch_with_the_lowest_validation_loss_and_repeats(model: torch_model.Model) -> None:
    results = []
    for _ in range(2):
        adaptation = start("router", model)
        lines: list[str] = []
        training = reference_training.train(adaptation, examples_for(model, 1), 0.02, seed=1, report=lines.append)
        losses = [float(line.rpartition(" ")[2]) for line in lines]
        assert training.best_epoch == losses.index(min(losses)) > 0
        assert round(training.loss_after, 4) == min(losses)
        results.append((losses, adaptation.trained[0].detach().clone()))
    assert results[0][0] == results[1][0] and torch.equal(results[0][1], results[1][1])


def test_what_is_not_a_number_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_training, "choice_logits", lambda *_: torch.tensor([[float("nan"), 0.0]]))
    example = types.SimpleNamespace(question=types.SimpleNamespace(id="q7", gold=0), seconds=0.0)
    with pytest.raises(ValueError, match="q7: the model's output is not finite"):
        reference_training.ask(None, [example])


# --- The table ---

def answers(right: str) -> list[dict]:
    return [{"id": f"q{i}", "correct": mark == "+", "seconds": 0.5} for i, mark in enumerate(right)]


def test_improved_and_worsened_are_counted_by_question() -> None:
    none, other = answers("++--+-"), answers("+-++-+")
    assert paired_table.outcomes(other[::-1], none) == (6, 4, 3, 2)
    assert paired_table.outcomes(none, none) == (6, 3, 0, 0)
    with pytest.raises(ValueError, match="q5 was not asked with every method"):
        paired_table.outcomes(other, none[:-1])


def test_interval_is_about_that_of_resampled_questions() -> None:
    tasks = [paired_table.Outcomes(120, 70, 30, 12), paired_table.Outcomes(80, 40, 5, 9)]
    interval = paired_table.difference(tasks)
    generator = np.random.default_rng(1)
    sums = np.zeros(20_000)
    for task in tasks:
        marks = np.array([1] * task.improved + [-1] * task.worsened + [0] * (task.items - task.improved - task.worsened))
        sums += generator.choice(marks, (len(sums), task.items)).sum(axis=1)
    low, high = np.quantile(100 * sums / 200, [0.025, 0.975])
    assert interval.value == pytest.approx(7.0)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1.0)  # Two questions of 200.


def test_interval_is_newcombes_and_no_point_where_all_agree() -> None:
    # Both right 36, only the method 12, only `none` 2, neither 0; then figures of tests/client/eval_statistics_test.cc.
    interval = paired_table.difference([paired_table.Outcomes(50, 48, 12, 2)])
    assert tuple(interval) == pytest.approx((20.0, 5.69, 34.04), abs=0.006)
    assert tuple(paired_table.difference([paired_table.Outcomes(30, 30, 0, 0)])) == pytest.approx((0, -11.35, 11.35), abs=0.006)
    all_improved = paired_table.difference([paired_table.Outcomes(9, 9, 9, 0)])
    assert all_improved.value == 100 and all_improved.high == 100 and all_improved.low < 70


def test_table_shows_each_task_and_all() -> None:
    marks = {("a", "none"): "+---", ("a", "router"): "++++", ("b", "none"): "+-", ("b", "router"): "-+"}
    items = [{"task": task, "method": method, **answer}
             for (task, method), right in marks.items() for answer in answers(right)]
    trainings = {key: {"parameters": 1234 * (key[1] == "router"), "training_seconds": 2.0} for key in marks}
    lines = paired_table.table(["a", "b"], ["none", "router"], items, trainings).split("\n")
    assert lines[2] == "| a | none | 4 | 25.0 |  |  | 0 | 2 | 0.500 |"
    assert re.fullmatch(r"\| a \| router \| 4 \| 100.0 \| \+75.0 \[\+8.5, \+95.4\] \| 3 / 0 \| 1,234 \| 2 \| 0.500 \|",
                        lines[3])
    assert lines[6].startswith("| all | none | 6 | 33.3 |  |  | 0 | 4 |")
    assert lines[7].startswith("| all | router | 6 | 83.3 | +50.0 [") and "| 4 / 1 | 1,234 | 4 |" in lines[7]
    assert len(lines) == 8


# --- A run ---

class Tokenizer:
    """A token per word with the space before it; 1 goes first where special tokens are asked for."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, text: str, add_special_tokens: bool) -> list[int]:
        self.calls += 1
        words = [2 + zlib.crc32(word.encode()) % (VOCABULARY - 2) for word in re.findall(r" ?[^ ]+", text)]
        return [1] * add_special_tokens + words


def toy_lines(task: str, count: int, seed: int, choices: list[str]) -> list[dict]:
    """The answer depends on whether the first word is the sun."""
    generator = random.Random(seed)
    lines = []
    for i in range(count):
        words = [generator.choice(WORDS[:2])] + generator.choices(WORDS[2:], k=generator.randint(1, 4))
        lines.append({"id": f"{task}/{i}", "prompt": " ".join(words), "answer": choices[words[0] != "sun"],
                      "choices": choices, "metadata": {}})
    return lines


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("suite")
    tasks = {"one": ([" warm", " cold"], "raw"), "two": ([" yes", " no"], "raw"),
             "longer": ([" quite warm", " cold"], "raw"), "by_length": ([" warm", " cold"], "length_normalized")}
    (path / "suite.json").write_text(json.dumps({"tasks": [{"name": name, "metric": metric}
                                                           for name, (_, metric) in tasks.items()]}))
    for name, (choices, _) in tasks.items():
        (path / name).mkdir()
        for side, count, seed in (("references", 16, 1), ("heldout", 10, 2)):
            (path / name / f"{side}.jsonl").write_text(
                "".join(json.dumps(line) + "\n" for line in toy_lines(name, count, seed, choices)))
    return path


@pytest.fixture
def settings(folder: pathlib.Path, suite: pathlib.Path, tmp_path: pathlib.Path,
             monkeypatch: pytest.MonkeyPatch) -> fine_tuning.Settings:
    monkeypatch.setattr(reference_training, "EPOCHS_MAX", 3)
    return fine_tuning.Settings(folder, suite, tmp_path / "run", ["one", "two"], METHODS, limit=8, references=12, seed=3,
                                layers=1, vectors=2)


def lines_of(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_seconds(lines: list[dict]) -> list[dict]:
    return [{name: value for name, value in line.items() if not name.endswith("seconds")} for line in lines]


def test_run_answers_every_question_with_every_method(settings: fine_tuning.Settings, suite: pathlib.Path) -> None:
    table = fine_tuning.run(settings, lambda shape: Tokenizer())
    items = lines_of(settings.out / "items.jsonl")
    assert [(item["task"], item["method"], item["id"]) for item in items] == [
        (task, method, f"{task}/{i}") for task in ("one", "two") for method in METHODS for i in range(8)]
    for item in items:
        line = lines_of(suite / item["task"] / "heldout.jsonl")[int(item["id"].rpartition("/")[2])]
        assert item["gold"] == line["choices"].index(line["answer"])
        assert item["correct"] == (item["predicted"] == item["gold"]) and item["seconds"] > 0
    trainings = lines_of(settings.out / "trainings.jsonl")
    assert all(training["loss_after"] <= training["loss_before"] and training["training_seconds"] > 0
               for training in trainings if training["method"] != "none")
    assert len(table.split("\n")) == 2 + 3 * len(METHODS)


def test_run_that_was_killed_goes_on_without_training_again(settings: fine_tuning.Settings, tmp_path: pathlib.Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    fine_tuning.run(settings._replace(out=tmp_path / "whole"), lambda shape: Tokenizer())
    train, trained = reference_training.train, []

    def counted(*arguments) -> reference_training.Training:
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(arguments)
        return train(*arguments)

    monkeypatch.setattr(reference_training, "train", counted)
    with pytest.raises(KeyboardInterrupt):
        fine_tuning.run(settings, lambda shape: Tokenizer())
    # What a kill between the two files leaves, and one within a line.
    with open(settings.out / "items.jsonl", "a") as file:
        file.write(json.dumps({"task": "one", "method": "full", "id": "one/0", "correct": True, "seconds": 1.0}) + '\n{"ta')
    trained.clear()
    monkeypatch.setattr(reference_training, "train", lambda *arguments: trained.append(1) or train(*arguments))
    fine_tuning.run(settings, lambda shape: Tokenizer())
    assert len(trained) == 5  # Of four methods and two tasks, three trainings were done.
    for name in ("items.jsonl", "trainings.jsonl"):
        assert without_seconds(lines_of(settings.out / name)) == without_seconds(lines_of(tmp_path / "whole" / name))


def test_run_that_is_done_is_only_shown_again(settings: fine_tuning.Settings) -> None:
    def refuse(shape: torch_model.Shape) -> Callable:
        raise AssertionError("nothing is left to cut into tokens")

    few = settings._replace(methods=["none", "router"])
    table = fine_tuning.run(few, lambda shape: Tokenizer())
    assert fine_tuning.run(few, refuse) == table
    assert "prompt" not in fine_tuning.run(few._replace(methods=["router", "none"], tasks=["two"]), refuse)


@pytest.mark.parametrize("changed", [{"limit": 7}, {"references": 11}, {"seed": 4}])
def test_folder_of_other_settings_is_refused_by_name(settings: fine_tuning.Settings, changed: dict) -> None:
    few = settings._replace(methods=["none"], tasks=["one"])
    fine_tuning.run(few, lambda shape: Tokenizer())
    with pytest.raises(ValueError, match=f"--out .*: holds a run whose {list(changed)[0]} is"):
        fine_tuning.run(few._replace(**changed), lambda shape: Tokenizer())


def test_damaged_line_is_named(settings: fine_tuning.Settings) -> None:
    settings.out.mkdir()
    whole = '{"task": "one", "method": "none", "id": "one/0", "correct": true, "seconds": 1}\n'
    cut = '{"task": "one", "method": "none", "id": "one/1"}\n'
    for second, message in (("x\n", "Expecting value"), (cut, "has no correct")):
        (settings.out / "items.jsonl").write_text(whole + second)
        with pytest.raises(ValueError, match=f"items.jsonl:2: {message}"):
            recorded_run.RecordedRun(settings.out, {})


def test_choice_of_several_tokens_is_refused_by_name(settings: fine_tuning.Settings) -> None:
    with pytest.raises(ValueError, match=r"longer/references.jsonl:1: choices: ' quite warm' has 2 tokens"):
        fine_tuning.run(settings._replace(tasks=["longer"]), lambda shape: Tokenizer())


def test_task_of_another_metric_and_an_unknown_one_are_refused_by_name(settings: fine_tuning.Settings) -> None:
    with pytest.raises(ValueError, match="--task: the metric of by_length is length_normalized"):
        fine_tuning.run(settings._replace(tasks=["by_length"]), lambda shape: Tokenizer())
    with pytest.raises(ValueError, match="--task: three is not in .*suite.json, which has one, two, longer, by_length"):
        fine_tuning.run(settings._replace(tasks=["three"]), lambda shape: Tokenizer())


def test_bad_line_of_the_suite_is_named(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "references.jsonl"
    good = toy_lines("one", 1, 1, [" warm", " cold"])[0]
    for bad, message in (({"id": "x", "prompt": "sun", "choices": [" warm"]}, "has no answer"),
                         ({**good, "answer": " hot"}, "answer: is none of the choices")):
        path.write_text(json.dumps(good) + "\n" + json.dumps(bad) + "\n")
        with pytest.raises(ValueError, match=f"references.jsonl:2: {message}"):
            fine_tuning.read_questions(path, 5, Tokenizer())
        assert len(fine_tuning.read_questions(path, 1, Tokenizer())) == 1


def test_choice_that_changes_the_prompts_tokens_is_cut_apart() -> None:
    cuts = {"ab": [7, 8], "abc": [7, 9], "c": [5], " d": [6], "ab d": [7, 8, 3]}
    tokenize = lambda text, add_special_tokens: cuts[text]
    assert fine_tuning.token_of("c", "ab", [7, 8], tokenize) == 5
    assert fine_tuning.token_of(" d", "ab", [7, 8], tokenize) == 3


def test_server_of_another_model_is_refused_by_field(model: torch_model.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    class Connection:
        layers = 30

        def server_info(self) -> types.SimpleNamespace:
            return types.SimpleNamespace(model=types.SimpleNamespace(
                name="other", layers=self.layers, experts=EXPERTS, hidden_size=HIDDEN, vocabulary_size=VOCABULARY))

        def tokenize(self, text: str, *, add_special_tokens: bool) -> types.SimpleNamespace:
            return types.SimpleNamespace(ids=[len(text), add_special_tokens])

    monkeypatch.setattr(fine_tuning.Client, "from_environment", lambda address, timeout: Connection())
    with pytest.raises(ValueError, match="--server here:1: layers of its model other is 30, that of --model is 2"):
        fine_tuning.ServerTokenizer("here:1", model.shape)("sun", True)
    Connection.layers = model.shape.layers
    assert fine_tuning.ServerTokenizer("here:1", model.shape)("sun", True) == [3, True]


@pytest.mark.parametrize("flags, message", [
    (["--methods", "router"], "--methods: none has to be among them"),
    (["--methods", "none,adapter"], "--methods: adapter is none of"), (["--limit", "0"], "--limit: '0' is not")])
def test_wrong_flag_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, flags: list[str],
                             message: str) -> None:
    monkeypatch.setattr(sys, "argv", ["fine_tuning.py", "--out", "unused", *flags])
    with pytest.raises(SystemExit) as stopped:
        fine_tuning.main()
    assert stopped.value.code == 2 and message in capsys.readouterr().err
