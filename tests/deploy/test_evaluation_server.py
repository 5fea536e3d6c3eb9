"""What the evaluation scripts ask of their server is what is stored there. C3POD names the server.
Run: pytest tests/deploy/test_evaluation_server.py"""

import json
import os
import pathlib
import subprocess

SOURCE = pathlib.Path(__file__).resolve().parents[2]
C3POD = pathlib.Path(os.environ.get("C3POD", SOURCE / "build" / "release" / "bin" / "c3pod"))
TINY_MODEL = SOURCE / "tests" / "golden" / "model" / "mixtral_tiny"

SCRIPT = """
set -euo pipefail
. deploy/evaluation/evaluation_server.sh
start_server "$1" --model "$2" --embedder model
learned() { for field in profile prior; do if has_learned $field "$1"; then echo "$1 $field"; fi; done; }
c3po refs import "$1/samples.jsonl" --collection bare
c3po refs import "$1/samples.jsonl" --collection fitted
learned bare
c3po refs profile set --collection bare '{"method":"METHOD_NONE"}'
learned bare
c3po refs tune --collection fitted --epochs 1
learned fitted
"""


def test_a_profile_and_a_prior_are_found_where_they_are_and_nowhere_else(tmp_path):
    samples = [{"prompt": f"question {i}", "answer": " yes" if i % 2 else " no", "choices": [" yes", " no"]} for i in range(12)]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    run = subprocess.run(["bash", "-c", SCRIPT, "bash", str(tmp_path), str(TINY_MODEL)], cwd=SOURCE, capture_output=True, text=True,
                         timeout=120, check=False, env=os.environ | {"C3PO_BIN": str(C3POD.parent)})
    assert run.returncode == 0, run.stdout + run.stderr
    found = [line for line in run.stdout.splitlines() if line in {f"{c} {f}" for c in ("bare", "fitted") for f in ("profile", "prior")}]
    assert found == ["bare profile", "fitted prior"]
