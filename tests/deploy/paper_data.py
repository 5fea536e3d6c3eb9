"""Made-up questions in the files of the six benchmarks' publishers, short enough for models of 256 bytes of context."""

import json
import pathlib
import random

WORDS = ("ash bay cod dew elm fig gum hay ivy jam kit log mud nut oak pea rye sap tar urn vat wax yam zip ant bee cow doe eel fox "
         "gnu hen imp jay koi ram").split()
TESTED, OTHERS = 6, 16  # Questions of each benchmark; rows of each other split.


def _lines(path: pathlib.Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write(folder: pathlib.Path, seed: int = 1) -> None:
    draw = random.Random(seed)

    def words(count: int) -> list[str]:
        return draw.sample(WORDS, count)

    def text() -> str:
        return " ".join(words(4))

    for split, count in (("test", TESTED // 2), ("val", OTHERS // 2), ("dev", 2)):
        for subject in ("high_school_botany", "zoology"):
            path = folder / "mmlu" / split / f"{subject}_{split}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [f'"{text()}?",{",".join(words(4))},{draw.choice("ABCD")}' for _ in range(count)]
            path.write_text("\n".join(rows) + "\n")
    for split, count in (("train", OTHERS), ("val", TESTED)):
        _lines(folder / "hellaswag" / f"hellaswag_{split}.jsonl",
               [{"ind": at, "activity_label": "Bake", "ctx_a": f"{text()} [title]", "ctx_b": "she", "source_id": f"a~{split}{at}",
                 "endings": [f"{word}s [step] it." for word in words(4)], "label": draw.randrange(4)} for at in range(count)])
    for config in ("ARC-Challenge", "ARC-Easy"):
        for split, count in (("Train", OTHERS), ("Dev", 4), ("Test", TESTED)):
            _lines(folder / "ai2_arc" / config / f"{config}-{split}.jsonl",
                   [{"id": f"{config}-{split}-{at}", "answerKey": draw.choice("ABCD"),
                     "question": {"stem": f"{text()}?", "choices": [{"text": word, "label": label}
                                                                    for word, label in zip(words(4), "ABCD")]}}
                    for at in range(count)])
    for split, count in (("train", OTHERS), ("valid", TESTED)):
        _lines(folder / "piqa" / f"{split}.jsonl", [{"goal": text(), "sol1": words(1)[0], "sol2": text()} for _ in range(count)])
        (folder / "piqa" / f"{split}-labels.lst").write_text("".join(f"{draw.randrange(2)}\n" for _ in range(count)))
    for split, count in (("train_xl", OTHERS), ("dev", TESTED)):
        rows = []
        for at in range(count):
            first, second = words(2)
            rows.append({"qID": f"{split}-{at}", "sentence": f"{text()} so _ is {words(1)[0]}.", "option1": first,
                         "option2": second, "answer": str(draw.randrange(2) + 1)})
        _lines(folder / "winogrande" / f"{split}.jsonl", rows)
