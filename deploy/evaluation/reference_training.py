"""Trains an adaptation on references, and asks it questions. The loss of a question is the cross-entropy over its
choices' log-likelihoods at the last prompt position, which is C3PO's objective `choices`; a choice has one token.

Where a training stops is decided by references held apart. The same seed and number of threads give the same result
again on the same machine."""

import random
import time
from typing import Any, Callable, NamedTuple

import torch_model  # Before torch: finds it.

import torch
import torch.nn.functional as F

from adaptations import Adaptation

BATCH = 8  # Questions a step.
EPOCHS_MAX = 16
PATIENCE = 4  # Epochs that may pass without a lower loss on the references held apart.
VALIDATION_PART = 4  # One reference of so many is held apart.
SETTINGS = {"batch": BATCH, "epochs_max": EPOCHS_MAX, "patience": PATIENCE, "validation_part": VALIDATION_PART}
TOKENS_MAX = 1024  # Of one forward and backward pass, unless a question alone has more: bounds memory.


class Question(NamedTuple):
    id: str
    prompt: list[int]  # Tokens, at least one.
    choices: list[int]  # A token each.
    gold: int  # Which of the choices is right.


class Example(NamedTuple):
    """A question with the states that enter an adaptation's first layer."""

    question: Question
    entering: torch.Tensor  # [tokens, hidden]
    seconds: float  # It took to compute them.


class Training(NamedTuple):
    """Losses are means over the references held apart, in nats. Without parameters nothing is trained: the default."""

    training_seconds: float = 0
    epochs: int = 0
    best_epoch: int = 0  # Whose weights were kept; 0: the start's.
    loss_before: float | None = None
    loss_after: float | None = None


def enter(model: torch_model.Model, questions: list[Question], first_layer: int) -> list[Example]:
    """Runs the layers below first_layer, one question at a time."""
    examples = []
    for question in questions:
        began = time.perf_counter()
        with torch.no_grad():
            embedded = model.embedding[torch.tensor(question.prompt)]
            entering = torch_model.run_layers(model, embedded, [len(embedded)], range(first_layer))
        examples.append(Example(question, entering, time.perf_counter() - began))
    return examples


def choice_logits(adaptation: Adaptation, examples: list[Example]) -> list[torch.Tensor]:
    """Of each example, [its choices]: their log-likelihoods but for one number that they share."""
    states = torch_model.final_states(adaptation.model, [example.entering for example in examples],
                                      adaptation.first_layer)
    return [adaptation.model.head[torch.tensor(example.question.choices)] @ state
            for example, state in zip(examples, states)]


def loss_of(adaptation: Adaptation, examples: list[Example]) -> torch.Tensor:
    """Summed over the examples, a scalar."""
    return torch.stack([F.cross_entropy(logits, torch.tensor(example.question.gold))
                        for example, logits in zip(examples, choice_logits(adaptation, examples))]).sum()


def pieces(examples: list[Example]) -> list[list[Example]]:
    """Cuts them, in their order, into runs of at most TOKENS_MAX tokens; an example that is longer is alone."""
    runs: list[list[Example]] = []
    tokens = TOKENS_MAX
    for example in examples:
        tokens += len(example.entering)
        if tokens > TOKENS_MAX:
            runs.append([])
            tokens = len(example.entering)
        runs[-1].append(example)
    return runs


def mean_loss(adaptation: Adaptation, examples: list[Example]) -> float:
    with torch.no_grad():
        return sum(loss_of(adaptation, piece).item() for piece in pieces(examples)) / len(examples)


def train_epoch(adaptation: Adaptation, optimizer: torch.optim.Optimizer, examples: list[Example]) -> float:
    """A step per batch, in the examples' order. The mean loss, each example's before its batch's step."""
    total = 0.0
    for first in range(0, len(examples), BATCH):
        batch = examples[first:first + BATCH]
        optimizer.zero_grad()
        for piece in pieces(batch):
            loss = loss_of(adaptation, piece)
            (loss / len(batch)).backward()
            total += loss.item()
        optimizer.step()
    return total / len(examples)


def train(adaptation: Adaptation, examples: list[Example], learning_rate: float, seed: int,
          report: Callable[[str], None]) -> Training:
    """Changes what the adaptation trains, in place, to the best epoch's. At least two examples. report: gets a line per
    epoch."""
    began = time.perf_counter()
    generator = random.Random(seed)
    shuffled = generator.sample(examples, len(examples))
    apart = max(1, len(examples) // VALIDATION_PART)
    validation, training = shuffled[:apart], shuffled[apart:]
    optimizer = torch.optim.Adam(adaptation.trained, lr=learning_rate)
    before = lowest = mean_loss(adaptation, validation)
    best, best_epoch, epoch = [tensor.detach().clone() for tensor in adaptation.trained], 0, 0
    report(f"{len(training)} references and {apart} apart; validation loss {before:.4f}")
    while epoch < EPOCHS_MAX and epoch < best_epoch + PATIENCE:
        epoch += 1
        generator.shuffle(training)
        training_loss = train_epoch(adaptation, optimizer, training)
        validation_loss = mean_loss(adaptation, validation)
        report(f"epoch {epoch}: training loss {training_loss:.4f}, validation loss {validation_loss:.4f}")
        if validation_loss < lowest:
            best = [tensor.detach().clone() for tensor in adaptation.trained]
            lowest, best_epoch = validation_loss, epoch
    with torch.no_grad():
        for tensor, kept in zip(adaptation.trained, best):
            tensor.copy_(kept)
    seconds = time.perf_counter() - began + sum(example.seconds for example in examples)
    return Training(round(seconds, 3), epoch, best_epoch, before, lowest)


def ask(adaptation: Adaptation, examples: list[Example]) -> list[dict[str, Any]]:
    """One at a time: what a line of items.jsonl says beside task and method (recorded_run.py). ValueError where the model
    gives what is not a number, of which argmax takes the first for the largest."""
    answers = []
    for example in examples:
        began = time.perf_counter()
        with torch.no_grad():
            logits = choice_logits(adaptation, [example])[0]
            predicted = int(logits.argmax())
        if not torch.isfinite(logits).all():
            raise ValueError(f"question {example.question.id}: the model's output is not finite")
        seconds = example.seconds + time.perf_counter() - began
        answers.append({"id": example.question.id, "gold": example.question.gold, "predicted": predicted,
                        "correct": predicted == example.question.gold, "seconds": round(seconds, 6)})
    return answers
