"""The paper's benchmarks by one command: what a run needs, the table, and whole runs on tiny models of both families, one of them
killed in the middle. C3POD names the server.  Run: pytest tests/deploy/test_paper.py"""

import json
import os
import pathlib
import re
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
import paper_table  # noqa: E402

TASKS = ["mmlu", "hellaswag", "arc_challenge", "arc_easy", "piqa", "winogrande"]
C3POD = pathlib.Path(os.environ.get("C3POD", SOURCE / "build" / "release" / "bin" / "c3pod"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("data")
    paper_data.write(folder)
    return folder


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
                         "bfloat16": {"weights": 13838323712, "kv_per_1000_positions": 131072000}}}


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
    (tmp_path / "config.json").write_text('{"torch_dtype": "bfloat16"}')
    bare = paper_plan.plan({**CARD, "folder": str(tmp_path), "stored_bytes": {}}, small_suite(), None, 1, "cuda", None)
    assert "weights 13.8 GB in bfloat16" in bare and "weights 13.8 GB, not here yet" in bare
    stated = paper_plan.plan(CARD, small_suite(), None, 1.5, "cpu", None)
    assert "hours       2.50 for the questions, at 1.5 s each" in stated and "on the CPU" in stated
    assert "KV cache 4.3 GB" in stated  # 32,768 positions in bfloat16, as the weights are.
    wide = paper_plan.plan({**CARD, "stored_bytes": {"F32": 27676647424}}, small_suite(), None, 1.5, "cpu", None)
    assert "KV cache 8.6 GB" in wide
    assert paper_plan.references_that_fit(small_suite(), read, 100) == 500
    fewer = paper_plan.references_that_fit(small_suite(), read, 0.5)  # 0.6 s a reference, a third of half an hour.
    assert 150 < fewer and fewer * 6 * 0.6 <= 600
    assert paper_plan.references_that_fit(small_suite(), read, 1e-6) == paper_plan.REFERENCES_MIN


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
    model = tmp_path / "hub" / "models--allenai--OLMoE-1B-7B-0924"
    snapshot, newer = model / "snapshots" / ("0123" * 10), model / "snapshots" / ("4567" * 10)
    for folder in (snapshot, newer, model / "refs"):
        folder.mkdir(parents=True)
    (newer / "config.json").write_text("{}")  # Of another revision.
    (model / "refs" / "main").write_text(snapshot.name)
    with pytest.raises(ValueError, match="hf download allenai/OLMoE-1B-7B-0924"):
        paper_plan.find_model("allenai/OLMoE-1B-7B-0924")
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
    (tmp_path / "references").write_text("5\n")  # Of the suite's 9: what the hours allowed.
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
    assert "- MMLU: references / questions are of train / test; 5 references." in rows
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


@pytest.mark.skipif(not C3POD.exists(), reason="no c3pod")
def test_a_stated_rate_plans_without_weights(data, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_bytes((MODELS / "olmoe_tiny" / "config.json").read_bytes())
    run = [EVALUATION / "paper.sh", "--model", tmp_path / "m", "--data", data, "--out", tmp_path / "out", "--plan"]
    stated = subprocess.run([*run, "--seconds-per-question", "2"], env=environment(), capture_output=True, text=True)
    assert stated.returncode == 0 and "hours       0.02 for the questions, at 2 s each" in stated.stdout, stated.stderr
    assert "not here yet" in stated.stdout
    trial = subprocess.run(run, env=environment(), capture_output=True, text=True)
    assert trial.returncode != 0 and "has no weights, *.safetensors. Bring them with" in trial.stderr
