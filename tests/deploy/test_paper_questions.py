"""The paper's benchmarks: the files that their questions and references are read from.  Run: pytest tests/deploy/test_paper_questions.py"""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[2] / "deploy" / "evaluation"), str(pathlib.Path(__file__).resolve().parent)]

import paper_data  # noqa: E402
import paper_files  # noqa: E402
import paper_questions  # noqa: E402

TASKS = ["mmlu", "hellaswag", "arc_challenge", "arc_easy", "piqa", "winogrande"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("data")
    paper_data.write(folder)
    return folder


def made(data: pathlib.Path | str, references: int = 1000, mmlu: str = "letters") -> dict:
    return {"data": str(data), "references": references, "mmlu": mmlu}


def lines(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_published_files_become_questions_of_the_tested_split_and_references_of_the_others(data, tmp_path):
    paper_questions.write_suite(tmp_path, made(data), tmp_path)
    suite = json.loads((tmp_path / "suite.json").read_text())
    assert [task["name"] for task in suite["tasks"]] == TASKS
    first = {}
    for task in suite["tasks"]:
        questions, references = lines(tmp_path / task["heldout_file"]), lines(tmp_path / task["references_file"])
        assert len(questions) == task["heldout"] == paper_data.TESTED
        assert len(references) == task["references"] >= paper_data.OTHERS
        for line in questions + references:
            assert line["answer"] in line["choices"] and all(choice.startswith(" ") for choice in line["choices"])
        assert not {line["prompt"] for line in questions} & {line["prompt"] for line in references}
        first[task["name"]] = questions[0]
    assert re.fullmatch(r"The following is a multiple choice question \(with answer\) about (zoology|high school botany)\.\n\n"
                        r".*\?\nA\. \w+\nB\. \w+\nC\. \w+\nD\. \w+\nAnswer:", first["mmlu"]["prompt"])
    assert first["mmlu"]["choices"] == [" A", " B", " C", " D"]
    assert re.fullmatch(r"Bake: [\w ]+\. She", first["hellaswag"]["prompt"])
    assert re.fullmatch(r" \w+s it\.", first["hellaswag"]["answer"])
    assert re.fullmatch(r"Question: .*\?\nAnswer:", first["arc_easy"]["prompt"])
    assert first["piqa"]["prompt"].startswith("Goal: ") and first["winogrande"]["prompt"].endswith(" so")


def test_gold_labels_are_those_of_the_files(data, tmp_path):
    paper_questions.write_suite(tmp_path, made(data), tmp_path)
    labels = (data / "piqa" / "valid-labels.lst").read_text().split()
    rows = lines(data / "piqa" / "valid.jsonl")
    wanted = {f"Goal: {row['goal']}\nAnswer:": " " + row["sol2" if label == "1" else "sol1"] for row, label in zip(rows, labels)}
    assert {line["prompt"]: line["answer"] for line in lines(tmp_path / "piqa" / "heldout.jsonl")} == wanted
    rows = {row["id"]: row for row in lines(data / "ai2_arc" / "ARC-Easy" / "ARC-Easy-Test.jsonl")}
    for line in lines(tmp_path / "arc_easy" / "heldout.jsonl"):
        row = rows[line["metadata"]["native_id"]]
        assert line["answer"] == " " + {each["label"]: each["text"] for each in row["question"]["choices"]}[row["answerKey"]]
    rows = {row["qID"]: row for row in lines(data / "winogrande" / "dev.jsonl")}
    for line in lines(tmp_path / "winogrande" / "heldout.jsonl"):
        row = rows[line["metadata"]["native_id"]]
        assert line["answer"].startswith(f" {row['option' + row['answer']]} is ")


def hub_rows(data: pathlib.Path) -> dict[str, list[dict]]:
    """The same questions as the hub has them: file below a dataset's folder -> rows."""
    files = {}
    for split, name in (("test", "test"), ("val", "validation"), ("dev", "dev")):
        rows = []
        for path in sorted((data / "mmlu" / split).glob("*.csv")):
            rows += [{**row, "answer": "ABCD".index(row["answer"])} for row in paper_files._csv_rows(path)]
        files[f"cais/mmlu:all/{name}"] = rows
    for split, name in (("train", "train"), ("val", "validation")):
        files[f"Rowan/hellaswag:default/{name}"] = [
            {**row, "label": str(row["label"])} for row in lines(data / "hellaswag" / f"hellaswag_{split}.jsonl")]
    for config in ("ARC-Challenge", "ARC-Easy"):
        for split, name in (("Train", "train"), ("Dev", "validation"), ("Test", "test")):
            files[f"allenai/ai2_arc:{config}/{name}"] = [
                {"id": row["id"], "question": row["question"]["stem"], "answerKey": row["answerKey"],
                 "choices": {key: [each[key] for each in row["question"]["choices"]] for key in ("text", "label")}}
                for row in lines(data / "ai2_arc" / config / f"{config}-{split}.jsonl")]
    for split, name in (("train", "train"), ("valid", "validation")):
        labels = (data / "piqa" / f"{split}-labels.lst").read_text().split()
        files[f"ybisk/piqa:plain_text/{name}"] = [
            {**row, "label": int(label)} for row, label in zip(lines(data / "piqa" / f"{split}.jsonl"), labels)]
    for split, name in (("train_xl", "train"), ("dev", "validation")):
        files[f"allenai/winogrande:winogrande_xl/{name}"] = lines(data / "winogrande" / f"{split}.jsonl")
    return files


WRITE_PARQUET = """import json, sys, pyarrow, pyarrow.parquet
for path, rows in json.load(sys.stdin).items(): pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)"""


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_the_hugging_face_cache_gives_the_same_questions(form, data, tmp_path, monkeypatch):
    pythons = sorted(paper_files.pypi_package.cache_dir().glob("lm-eval-*/bin/python"))
    if form == "parquet" and not pythons:
        pytest.skip("no pyarrow: deploy/install_deps.sh brings it")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    tables = {}
    for place, rows in hub_rows(data).items():
        dataset, _, name = place.partition(":")
        cached = tmp_path / "hub" / f"datasets--{dataset.replace('/', '--')}"
        ref = cached / "refs" / ("main" if form == "jsonl" else "refs/convert/parquet")
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text("0123" * 10)
        folder = cached / "snapshots" / ("0123" * 10)
        path = folder / (f"{name}.jsonl" if form == "jsonl" else f"{name}/0000.parquet")
        path.parent.mkdir(parents=True, exist_ok=True)
        if form == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        tables[str(path)] = rows
    if form == "parquet":
        subprocess.run([pythons[-1], "-c", WRITE_PARQUET], input=json.dumps(tables), text=True, check=True)
    paper_questions.write_suite(tmp_path / "hub-suite", made(""), tmp_path)
    paper_questions.write_suite(tmp_path / "suite", made(data), tmp_path)
    for task in TASKS:
        for side in ("heldout", "references"):
            both = [{(line["prompt"], line["answer"]) for line in lines(tmp_path / suite / task / f"{side}.jsonl")}
                    for suite in ("hub-suite", "suite")]
            assert both[0] == both[1], (task, side)


def test_missing_files_are_named_with_the_commands_that_bring_them(data, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    with pytest.raises(paper_files.MissingData) as missing:
        paper_questions.write_suite(tmp_path / "suite", made(""), tmp_path)
    for dataset in ("cais/mmlu", "Rowan/hellaswag", "allenai/ai2_arc", "ybisk/piqa", "allenai/winogrande"):
        assert f"hf download {dataset} --repo-type dataset" in str(missing.value)
    assert not (tmp_path / "suite").exists()
    some = tmp_path / "some"
    shutil.copytree(data, some)
    (some / "piqa" / "train.jsonl").unlink()
    with pytest.raises(paper_files.MissingData, match=r"no files of PIQA train in .*some\. Bring") as missing:
        paper_questions.write_suite(tmp_path / "suite", made(some), tmp_path)
    assert f"--local-dir {some / 'piqa'}" in str(missing.value) and "cais/mmlu" not in str(missing.value)


def test_a_row_of_another_kind_is_named(data, tmp_path):
    some = tmp_path / "some"
    shutil.copytree(data, some)
    path = some / "winogrande" / "dev.jsonl"
    path.write_text(path.read_text().replace('"answer": "1"', '"answer": ""').replace('"answer": "2"', '"answer": ""'))
    with pytest.raises(ValueError, match=r"dev\.jsonl: row 1 is none of WinoGrande"):
        paper_questions.write_suite(tmp_path / "suite", made(some), tmp_path)


def test_a_reference_that_asks_what_a_question_asks_is_left_out(data, tmp_path):
    some = tmp_path / "some"
    shutil.copytree(data, some)
    train, tested = (some / "ai2_arc" / "ARC-Easy" / f"ARC-Easy-{split}.jsonl" for split in ("Train", "Test"))
    asked = json.loads(tested.read_text().splitlines()[0])
    with train.open("a") as file:
        file.write(json.dumps({**asked, "id": "copied"}) + "\n")
    paper_questions.write_suite(tmp_path / "suite", made(some), tmp_path)
    ids = [line["metadata"]["native_id"] for line in lines(tmp_path / "suite" / "arc_easy" / "references.jsonl")]
    assert "copied" not in ids and len(ids) >= paper_data.OTHERS


def test_each_prefix_of_mmlu_holds_the_same_share_of_every_subject():
    def item(subject: str, at: int) -> paper_questions.Item:
        return paper_questions.Item(f"{subject}/{at}", "p", " a", [" a", " b"], {"subject": subject}, ())

    items = [item("large", at) for at in range(90)] + [item("small", at) for at in range(30)]
    order = [each.metadata["subject"] for each in paper_questions.spread("mmlu", items)]
    for end in range(0, 121, 8):
        assert abs(order[:end].count("small") - end / 4) <= 1, end


def test_a_folder_of_other_questions_is_refused(data, tmp_path):
    paper_questions.write_suite(tmp_path, made(data), tmp_path)
    before = (tmp_path / "suite.json").read_bytes()
    with pytest.raises(ValueError, match="made with --mmlu letters, not texts"):
        paper_questions.write_suite(tmp_path, made(data, mmlu="texts"), tmp_path)
    assert (tmp_path / "suite.json").read_bytes() == before
