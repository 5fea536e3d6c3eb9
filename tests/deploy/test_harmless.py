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


def test_everyday_prompts_are_many_different_and_not_those_of_calibrate():
    lines = [json.loads(line) for line in (EVALUATION / "everyday.jsonl").read_text().splitlines()]
    prompts = {line["prompt"] for line in lines}
    assert len(prompts) == len(lines) == len({line["id"] for line in lines}) >= 60
    source = (SOURCE / "client" / "eval" / "off_topic_check.cc").read_text()
    shipped = set(re.findall(r'^ {6}"(.*)",$', source, re.M))
    assert len(shipped) >= 20
    assert not {prompt.replace('"', '\\"') for prompt in prompts} & shipped


def test_the_scripts_parse_and_name_every_default_that_could_change_their_tables():
    for name in ("harmless.sh", "strangers_way.sh", "main_table.sh", "studies.sh", "evaluation_server.sh"):
        subprocess.run(["bash", "-n", EVALUATION / name], check=True)
    descent = re.search(r"^DESCENT=\((.*?)\)", (EVALUATION / "evaluation_server.sh").read_text(), re.M | re.S)[1].split()
    for flag in ("--k", "--references", "--steps", "--learning-rate", "--step-rule", "--core-experts", "--critical-layers",
                 "--application", "--objective", "--backtrack", "--validation-neighbors", "--step-scale", "--patience",
                 "--prompt-positions", "--no-prior", "--no-gate", "--no-profile"):
        assert flag in descent, flag
