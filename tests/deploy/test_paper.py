"""The paper's benchmarks by one command: the files they are read from, what a run needs, the table, and whole runs on tiny models of
both families, one of them killed in the middle. C3POD names the server.  Run: pytest tests/deploy/test_paper.py"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

SOURCE = pathlib.Path(__file__).resolve().parents[2]
EVALUATION = SOURCE / "deploy" / "evaluation"
MODELS = SOURCE / "tests" / "golden" / "model"
sys.path[:0] = [str(EVALUATION), str(pathlib.Path(__file__).resolve().parent)]

import paper_data  # noqa: E402
import paper_plan  # noqa: E402
import paper_questions  # noqa: E402
import paper_table  # noqa: E402

TASKS = ["mmlu", "hellaswag", "arc_challenge", "arc_easy", "piqa", "winogrande"]
C3POD = pathlib.Path(os.environ.get("C3POD", SOURCE / "build" / "release" / "bin" / "c3pod"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("data")
    paper_data.write(folder)
    return folder


def made(data: pathlib.Path | str, references: int = 1000, mmlu: str = "letters") -> dict:
    return {"data": str(data), "references": references, "mmlu": mmlu}


def lines(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- Questions ---


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
            rows += [{**row, "answer": "ABCD".index(row["answer"])} for row in paper_questions._csv_rows(path)]
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
    pythons = sorted(paper_questions.pypi_package.cache_dir().glob("lm-eval-*/bin/python"))
    if form == "parquet" and not pythons:
        pytest.skip("no pyarrow: deploy/install_deps.sh brings it")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    tables = {}
    for place, rows in hub_rows(data).items():
        dataset, _, name = place.partition(":")
        folder = tmp_path / "hub" / f"datasets--{dataset.replace('/', '--')}" / "snapshots" / "0123abc"
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
    with pytest.raises(paper_questions.MissingData) as missing:
        paper_questions.write_suite(tmp_path / "suite", made(""), tmp_path)
    for dataset in ("cais/mmlu", "Rowan/hellaswag", "allenai/ai2_arc", "ybisk/piqa", "allenai/winogrande"):
        assert f"hf download {dataset} --repo-type dataset" in str(missing.value)
    assert not (tmp_path / "suite").exists()
    some = tmp_path / "some"
    shutil.copytree(data, some)
    (some / "piqa" / "train.jsonl").unlink()
    with pytest.raises(paper_questions.MissingData, match=r"no files of PIQA train in .*some\. Bring") as missing:
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


# --- Sizes and time ---


def test_a_round_grows_until_all_are_asked_and_never_beyond_the_time():
    sizes = [1000, 40]
    asked, rounds = 0, []
    while (limit := paper_plan.next_limit(asked, 1000, sizes, None, None)) is not None:
        rounds.append(limit)
        asked = limit
    assert rounds == [4, 16, 64, 256, 1000]
    assert paper_plan.next_limit(0, 1000, sizes, 10.0, None) == 4
    limit = paper_plan.next_limit(16, 1000, sizes, 20.0, 1.0)  # 19 more questions fit, of both.
    assert 16 < limit and 2 * (limit - 16) <= 19
    assert paper_plan.next_limit(16, 1000, sizes, 1.0, 1.0) is None
    assert paper_plan.next_limit(16, 1000, sizes, -1.0, 1.0) is None
    assert paper_plan.next_limit(1000, 1000, sizes, 1e9, 1e-3) is None


CARD = {"folder": "m", "family": "OlmoeForCausalLM", "layers": 16, "moe_layers": 16, "experts": 64,
        "stored_bytes": {"BF16": 13838323712},
        "memory_bytes": {"float32": {"weights": 27676647424, "kv_per_1000_positions": 262144000},
                         "bfloat16": {"weights": 13838323712, "kv_per_1000_positions": 131072000},
                         "kv_per_1000_positions_on_cpu": 262144000}}


def small_suite(heldout: int = 1000, references: int = 500) -> dict:
    return {"tasks": [{"name": name, "title": name, "heldout": heldout, "references": references} for name in TASKS]}


def test_the_plan_adds_up(tmp_path):
    rates = tmp_path / "rates.jsonl"
    rates.write_text("".join(json.dumps({"task": task, "stage": stage, "count": 10, "seconds": seconds}) + "\n"
                             for task in TASKS for stage, seconds in (("import", 1.2), ("tune", 0.6), ("ask", 36))) +
                     '{"stage":"memory","bytes":15000000000}\n{"stage":"store","bytes":1000,"count":10}\n')
    read = paper_plan.read_rates(rates, TASKS)
    text = paper_plan.plan(CARD, small_suite(), read, None, "cuda", 2.0)
    # 6 * 500 * 0.12 s; 8 * 6 * 500 * 0.06 s; 6 * 1000 * 3.6 s.
    assert "hours       6.50: references 0.10, router tuning up to 0.40, questions 6.00" in text
    assert "in 2 hours about 31 % of it fit" in text
    assert re.search(r"memory      \d+\.\d GB on the GPU: weights 13\.8 GB in bfloat16", text) and "15.0 GB of main memory" in text
    assert "questions   6,000, each by 7 methods" in text and "disk        13.9 GB: weights 13.8 GB" in text
    stated = paper_plan.plan(CARD, small_suite(), None, 1.5, "cpu", None)
    assert "hours       2.50 for the questions, at 1.5 s each" in stated and "on the CPU" in stated
    assert paper_plan.references_that_fit(small_suite(), read, 100) == 500
    fewer = paper_plan.references_that_fit(small_suite(), read, 0.5)  # 0.6 s a reference, a third of half an hour.
    assert 150 < fewer and fewer * 6 * 0.6 <= 600


def test_layers_of_the_ablation_fit_the_model():
    assert paper_plan.layer_choices(16) == {
        "All16": ",".join(map(str, range(16))), "F1": "0", "M1": "7", "L1": "15", "F2": "0,1", "M2": "7,8", "L2": "14,15",
        "F5": "0,1,2,3,4", "M5": "5,6,7,8,9", "L5": "11,12,13,14,15", "F2L3": "0,1,13,14,15"}
    assert paper_plan.layer_choices(4) == {"All4": "0,1,2,3", "F1": "0", "M1": "1", "L1": "3", "F2": "0,1", "M2": "1,2",
                                           "L2": "2,3"}
    assert paper_plan.layer_choices(1) == {"All1": "0"}


def test_a_model_is_found_by_folder_or_in_the_cache_or_named_with_what_brings_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ValueError, match="hf download allenai/OLMoE-1B-7B-0924"):
        paper_plan.find_model("allenai/OLMoE-1B-7B-0924")
    snapshot = tmp_path / "hub" / "models--allenai--OLMoE-1B-7B-0924" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has no weights, \*\.safetensors"):
        paper_plan.find_model("allenai/OLMoE-1B-7B-0924")
    (snapshot / "model.safetensors").write_text("")
    assert paper_plan.find_model("allenai/OLMoE-1B-7B-0924") == snapshot
    assert paper_plan.find_model(str(MODELS / "olmoe_tiny")) == MODELS / "olmoe_tiny"
    with pytest.raises(ValueError, match="is no model folder"):
        paper_plan.find_model(str(tmp_path))


# --- The table ---


def test_the_papers_figures_are_whole():
    figures = json.loads(paper_table.FIGURES.read_text())
    assert figures["benchmarks"] == [*TASKS, "mean"]
    for model, table in ((name, each["table"]) for name, each in figures["models"].items()):
        assert table.keys() == figures["methods"].keys() - {"prior"}
        for method, row in table.items():
            assert len(row) == 7
            # The paper's own mean of one row is not that of its figures: 68.4.
            if (model, method) != ("DeepSeekMoE", "soft-prompt"):
                assert abs(sum(row[:6]) / 6 - row[6]) < 0.06, (model, method)
    for name in ("k", "steps", "kernel", "prompt-positions"):  # Each has the point that the table has.
        assert max(figures["ablations"][name]["points"].values()) - 79.20 < 0.06


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def test_rows_come_from_the_report_by_name_and_what_nobody_measured_is_blank(tmp_path):
    (tmp_path / "suite").mkdir()
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "mmlu").write_text("none\n")
    (tmp_path / "suite" / "suite.json").write_text(json.dumps({"tasks": [
        {"name": name, "title": name.upper(), "heldout": 50, "references": 9, "split": "train / test"} for name in TASKS]}))

    def methods(task: str) -> list[dict]:
        known = [{"label": "none", "accuracy": estimate(0.5)},
                 {"label": "ngd", "accuracy": estimate(0.6), "difference": estimate(0.1)},
                 {"label": "a new row", "accuracy": estimate(0.25)}]
        return known if task == "mmlu" else [*known, {"label": "prior", "accuracy": estimate(0.75)}]

    report = {"reading": ["One sentence."], "tasks": [{"name": name, "items": 20, "methods": methods(name)} for name in TASKS]}
    (tmp_path / "report.json").write_text(json.dumps(report))
    rows = paper_table.render(tmp_path, "OlmoeForCausalLM").splitlines()
    assert "One sentence." in rows
    assert "| base model | ours | 50.0 | 50.0 | 50.0 | 50.0 | 50.0 | 50.0 | 50.0 |" in rows
    assert "|  | paper, OLMoE | 57.8 | 77.9 | 51.3 | 79.8 | 80.7 | 72.2 | 69.9 |" in rows
    assert not any("DeepSeekMoE" in row for row in rows)
    assert "| a new row | ours | 25.0 | 25.0 | 25.0 | 25.0 | 25.0 | 25.0 | 25.0 |" in rows
    assert "| oracle (upper bound) | ours |  |  |  |  |  |  |  |" in rows
    assert any(row.startswith("| router tuning") and "| 50.0\\* | 75.0 |" in row and row.endswith("| 70.8 |") for row in rows)
    assert any(row.startswith("| neighborhood gradient descent | +10.0 [+0.0, +20.0] |") for row in rows)
    assert any("MMLU 30 of 50" in row for row in rows)
    both = paper_table.render(tmp_path, "MixtralForCausalLM")  # A family that the paper has not: both of its models.
    assert "paper, OLMoE" in both and "paper, DeepSeekMoE" in both


# --- Whole runs ---


def command(model: str, data: pathlib.Path, out: pathlib.Path, *options: str) -> list:
    return [EVALUATION / "paper.sh", "--model", MODELS / model, "--data", data, "--out", out, *options, "--", "--embedder", "model",
            "--threads", "1"]


def environment() -> dict[str, str]:
    return {**os.environ, "C3PO_BIN": str(C3POD.parent)}


def answers(out: pathlib.Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in out.glob("runs/*/items.jsonl")}


def accuracy_rows(out: pathlib.Path) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in (out / "paper.md").read_text().splitlines()]
    return {row[0]: row[2:] for row in rows if len(row) == 9 and row[1] == "ours"}


def wait_until(holds, process: subprocess.Popen, what: str) -> None:
    for _ in range(6000):
        if holds():
            return
        assert process.poll() is None, f"ended before {what}: {process.communicate()}"
        time.sleep(0.05)
    raise AssertionError(f"never {what}")


@pytest.mark.skipif(not C3POD.exists(), reason="no c3pod")
def test_a_run_that_is_killed_in_the_middle_goes_on_where_it_was(data, tmp_path):
    run = command("olmoe_tiny", data, tmp_path)
    killed = subprocess.Popen(run, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_until(lambda: sum(content.count(b"\n") for content in answers(tmp_path).values()) >= 30, killed, "30 answers")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = answers(tmp_path)
    assert not (tmp_path / "paper.md").exists()
    done = subprocess.run(run, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = answers(tmp_path)
    for task, content in before.items():
        whole = content[:content.rfind(b"\n") + 1]
        assert after[task].startswith(whole), task
    for task in TASKS:
        asked = [(item["id"], item["method"]) for item in map(json.loads, after[task].splitlines())]
        assert len(asked) == len(set(asked)), f"{task}: an answer was asked for twice"
        methods = 7 if (tmp_path / "tuned" / task).read_text().strip() == "prior" else 6
        assert len(asked) == paper_data.TESTED * methods
    rows = accuracy_rows(tmp_path)
    for name in ("base model", "in-context learning", "mode finding", "kernel regression", "neighborhood gradient descent",
                 "oracle (upper bound)", "router tuning (ours: a shift learned once)"):
        assert len(rows[name]) == 7 and all(re.fullmatch(r"\d+\.\d(\\\*)?", cell) for cell in rows[name]), (name, rows[name])
    # The report by hand: accuracy of the base model.
    right = [json.loads(line)["correct"] for line in after["piqa"].splitlines() if b'"method":"none"' in line]
    assert rows["base model"][TASKS.index("piqa")] == f"{100 * sum(right) / len(right):.1f}"
    # No time is left: what is there is shown, and nothing is asked.
    again = subprocess.run(command("olmoe_tiny", data, tmp_path, "--hours", "0.0001"), env=environment(), capture_output=True, text=True)
    assert again.returncode == 0 and answers(tmp_path) == after, again.stderr


@pytest.mark.skipif(not C3POD.exists(), reason="no c3pod")
def test_the_other_family_with_a_plan_a_budget_and_the_ablations(data, tmp_path):
    plan = subprocess.run(command("deepseek_tiny", data, tmp_path, "--plan", "--hours", "2"), env=environment(), capture_output=True, text=True)
    assert plan.returncode == 0, plan.stderr
    for line in (r"memory +\d+\.\d \wB on the CPU", r"disk +\d", r"hours +\d+\.\d\d: references \d", r"questions +36, each by 7 methods"):
        assert re.search(line, plan.stdout), plan.stdout
    assert not answers(tmp_path)
    run = command("deepseek_tiny", data, tmp_path, "--hours", "2", "--ablations", "--ablation-questions", "1")
    done = subprocess.run(run, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(len(row) == 7 for row in accuracy_rows(tmp_path).values())
    text = (tmp_path / "paper.md").read_text()
    assert "paper, DeepSeekMoE" in text and "paper, OLMoE |" not in text
    for title in ("critical layers", "core experts", "the k nearest", "within epsilon", "gradient steps", "kernel", "optimized tokens"):
        assert f"**{title}" in text or re.search(rf"\*\*[^*]*{title}", text), title
    asked = {path.parent.name: {json.loads(line)["method"] for line in path.read_text().splitlines()}
             for path in tmp_path.glob("ablations/*/items.jsonl")}
    assert asked["layers"] == {"none", *paper_plan.layer_choices(4)}
    assert asked["k"] == {"none", "k=1", "k=3", "k=5"} and asked["prompt-positions"] == {"none", "prompt-positions=1", "prompt-positions=3"}


def test_mistakes_are_named():
    def said(*arguments: str) -> str:
        done = subprocess.run([EVALUATION / "paper.sh", *arguments], env=environment(), capture_output=True, text=True)
        assert done.returncode != 0
        return done.stderr

    assert "--model DIR|ORG/NAME is missing" in said()
    assert "--device tpu: must be cpu or cuda" in said("--model", "m", "--device", "tpu")
    assert "--hours soon: is no number" in said("--model", "m", "--hours", "soon")
    assert "--foo: no such option" in said("--foo")
    assert "--ablations" in said("--help")
    if C3POD.exists():
        assert "hf download nobody/nothing" in said("--model", "nobody/nothing")
