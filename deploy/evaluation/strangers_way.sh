#!/usr/bin/env bash
# Measures what a newcomer gets by README's way, import, calibrate, ask or score, on held-out questions, before and after calibrating:
#   choices    accuracy of `score`, and of `ask --choices`, which answers the same
#   text       how often the free text of `ask` is the right label
#   everyday   greedy answers to everyday.jsonl over the calibrated collection: how many change
# Methods: none; before: the defaults up to version 0.1.0, near the paper's; default: what a request gets; open: the profile without
# a limit of distance, as it was applied up to version 0.1.0. A run that was interrupted goes on where it stopped.
#   strangers_way.sh [FOLDER]   default build/strangers_way; strangers_way.md goes there
#   C3PO_WAY_TASKS (sst2,mrpc)  C3PO_WAY_QUESTIONS per task (60)  C3PO_WAY_REFERENCES per collection (150)
#   C3PO_WAY_BUDGET seconds of calibrating (100)  C3PO_WAY_EVERYDAY prompts of everyday.jsonl (72)
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT=${1:-build/strangers_way}
QUESTIONS=${C3PO_WAY_QUESTIONS:-60}
REFERENCES=${C3PO_WAY_REFERENCES:-150}
IFS=, read -ra TASKS <<<"${C3PO_WAY_TASKS:-sst2,mrpc}"
. deploy/evaluation/evaluation_server.sh

# measure TASK STAGE: accuracy by choices and by free text, in $OUT/TASK-STAGE-choices and -text.
measure() {
  local task=$1 stage=$2
  c3po eval --task "$OUT/$task.jsonl" --collection "$task" --methods none,before=ngd,default=profile "${BEFORE[@]}" \
    --out "$OUT/$task-$stage-choices" >/dev/null
  c3po eval --task "$OUT/$task.text.jsonl" --collection "$task" --metric exact_match --max-tokens 4 --stop $'\n' \
    --methods none,before=ngd,default=profile "${BEFORE[@]}" --out "$OUT/$task-$stage-text" >/dev/null
}

PYTHON=$(tools_python)
"$PYTHON" deploy/evaluation/build_suite.py "$SUITE"
heading "A server on $OUT"
start_server "$OUT"
head -n "${C3PO_WAY_EVERYDAY:-72}" deploy/evaluation/everyday.jsonl >"$OUT/everyday.jsonl"
for task in "${TASKS[@]}"; do
  head -n "$QUESTIONS" "$SUITE/$task/heldout.jsonl" >"$OUT/$task.jsonl"
  "$PYTHON" -c 'import json, sys
for line in sys.stdin:
    item = json.loads(line)
    print(json.dumps({key: item[key] for key in ("id", "prompt", "answer")}))' <"$OUT/$task.jsonl" >"$OUT/$task.text.jsonl"
  # Once: a calibration, even one that was interrupted, may have stored a profile, and then nobody gets the defaults any longer.
  if [ ! -f "$OUT/$task-imported.done" ]; then
    heading "$task: import"
    c3po refs import "$SUITE/$task/references.jsonl" --collection "$task" --limit "$REFERENCES"
    measure "$task" imported
    touch "$OUT/$task-imported.done"
  fi
  heading "$task: calibrate"
  if [ ! -f "$OUT/$task-calibrate.txt" ]; then
    c3po calibrate --collection "$task" --budget-seconds "${C3PO_WAY_BUDGET:-100}" --fresh | tee "$OUT/calibrate.part"
    mv "$OUT/calibrate.part" "$OUT/$task-calibrate.txt"
  fi
  measure "$task" calibrated
  c3po eval --task "$OUT/everyday.jsonl" --collection "$task" --metric exact_match --max-tokens 16 \
    --methods none,default=profile,open=profile --set open.gate.max_neighbor_distance=2 --out "$OUT/everyday-$task" >/dev/null
done

heading "Report"
{
  runs=()
  for task in "${TASKS[@]}"; do runs+=("$OUT/$task"-{imported,calibrated}-{choices,text}); done
  "$PYTHON" deploy/evaluation/right_answers.py "${runs[@]}"
  printf '\n'
  "$PYTHON" deploy/evaluation/unchanged_answers.py "$OUT"/everyday-*
} | tee "$OUT/strangers_way.md"
