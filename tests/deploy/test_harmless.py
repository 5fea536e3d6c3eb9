"""What measures harm by default: its prompts, how unchanged answers are counted, and the settings that its scripts name."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

SOURCE = pathlib.Path(__file__).resolve().parents[2]
EVALUATION = SOURCE / "deploy" / "evaluation"
sys.path.insert(0, str(EVALUATION))

import right_answers  # noqa: E402
import run_tables  # noqa: E402
import unchanged_answers  # noqa: E402


def item(method, name, text="", gate=""):
    return {"task": "everyday", "id": name, "method": method, "text": text, "gate": gate}


def test_an_answer_is_unchanged_where_its_text_is_the_models_own():
    items = [item("none", "a", "four"), item("none", "b", "Paris"), item("none", "c"),
             item("before", "a", "1,,,", "applied"), item("before", "b", "Paris", "applied"), item("before", "c", "x", "applied"),
             item("default", "a", "four", "skipped_neighbors_far"), item("default", "b", "Rome", "applied"), item("default", "c")]
    assert unchanged_answers.count(items) == {"before": (3, 1, 0), "default": (3, 2, 2)}
    table = unchanged_answers.table({"sst2": items, "mrpc": items})
    assert "| sst2 | before | 3 | 1 (33.3 %) | 0 |" in table
    assert "| all | default | 6 | 4 (66.7 %) | 4 |" in table
    with pytest.raises(ValueError, match="d was not asked"):
        unchanged_answers.count([*items, item("default", "d", "x")])


def test_right_answers_are_counted_by_method_and_a_method_not_asked_is_left_blank():
    judged = [{"method": "none", "correct": 1}, {"method": "none", "correct": 0}, {"method": "default", "correct": 1}]
    table = right_answers.table({"sst2": judged, "mrpc": judged[:1]}).splitlines()
    assert table[0] == "| run | none | default |"
    assert table[2:] == ["| sst2 | 1 of 2 | 1 of 1 |", "| mrpc | 1 of 1 |  |"]


def test_rows_that_the_evaluation_makes_are_read_beside_those_that_were_asked(tmp_path):
    """baselines.jsonl: the rows of client/eval/label_baselines.h, whose names the scripts know."""
    (tmp_path / "items.jsonl").write_text(json.dumps({**item("none", "a", "x"), "correct": False}) + "\n")
    before = run_tables.read_items(str(tmp_path))
    (tmp_path / "baselines.jsonl").write_text(
        "".join(json.dumps({**item(name, "a"), "correct": True}) + "\n" for name in run_tables.BASELINES))
    items = run_tables.read_items(str(tmp_path))
    assert [each["method"] for each in before] == ["none"]
    assert [each["method"] for each in items] == ["none", *run_tables.BASELINES]
    assert right_answers.table({"run": items}).splitlines()[2] == "| run | 0 of 1 | 1 of 1 | 1 of 1 | 1 of 1 |"
    assert unchanged_answers.count(items) == {}
    header = (SOURCE / "client" / "eval" / "label_baselines.h").read_text()
    assert tuple(re.findall(r'Label = "([a-z-]+)"', header)) == run_tables.BASELINES


def test_everyday_prompts_are_many_different_and_not_those_of_calibrate():
    lines = [json.loads(line) for line in (EVALUATION / "everyday.jsonl").read_text().splitlines()]
    prompts = {line["prompt"] for line in lines}
    assert len(prompts) == len(lines) == len({line["id"] for line in lines}) >= 60
    source = (SOURCE / "client" / "eval" / "off_topic_check.cc").read_text()
    shipped = set(re.findall(r'^ {6}"(.*)",$', source, re.M))
    assert len(shipped) >= 20
    assert not {prompt.replace('"', '\\"') for prompt in prompts} & shipped


def test_the_scripts_parse_and_name_every_default_that_could_change_their_tables():
    for script in EVALUATION.glob("*.sh"):
        subprocess.run(["bash", "-n", script], check=True)
    descent = fitted(30, 24)["DESCENT"]
    for flag in ("--k", "--references", "--steps", "--learning-rate", "--step-rule", "--core-experts", "--critical-layers",
                 "--application", "--objective", "--backtrack", "--validation-neighbors", "--step-scale", "--patience",
                 "--prompt-positions", "--no-prior", "--no-gate", "--no-profile"):
        assert flag in descent, flag


def fitted(moe_layers: int, experts: int) -> dict[str, list[str]]:
    """What evaluation_server.sh sets when a model of this size is served."""
    info = {"version": "1", "model": {"name": "m", "layers": moe_layers + 1, "moe_layers": moe_layers, "experts": experts,
                                      "experts_per_token": 2}, "embedder": {"name": "e"}}
    script = """set -euo pipefail; . "$1"; SERVER=none; served=$2; c3po() { echo "$served"; }; fit_settings
for name in MODEL_NAME CRITICAL; do echo "$name ${!name}"; done; echo DESCENT "${DESCENT[@]}"; echo BEFORE "${BEFORE[@]}\""""
    printed = subprocess.run(["bash", "-c", script, "-", EVALUATION / "evaluation_server.sh", json.dumps(info, separators=(",", ":"))],
                             check=True, capture_output=True, text=True).stdout
    return {line.split()[0]: line.split()[1:] for line in printed.splitlines()}


@pytest.mark.parametrize("moe_layers, experts, critical, before, core_experts", [
    (30, 24, "22-29", "25-29", 20),  # The default model: RESULTS.md.
    (16, 64, "11-15", "11-15", 20), (27, 64, "20-26", "22-26", 20), (4, 16, "0-3", "0-3", 16), (1, 8, "0-0", "0-0", 8)])
def test_settings_fit_the_model_that_is_served(moe_layers, experts, critical, before, core_experts):
    settings = fitted(moe_layers, experts)
    assert settings["MODEL_NAME"] == ["m"] and settings["CRITICAL"] == [critical]
    assert settings["DESCENT"][settings["DESCENT"].index("--critical-layers") + 1] == critical
    assert f"before.critical_layers={before}" in settings["BEFORE"]
    assert f"before.core_experts={core_experts}" in settings["BEFORE"]


def test_no_script_names_layers_of_one_model():
    for script in EVALUATION.glob("*.sh"):
        for number, line in enumerate(script.read_text().splitlines(), 1):
            assert not re.search(r"critical[-_]layers[ =]+[0-9]", line.partition("#")[0]), f"{script.name}:{number}: {line}"
