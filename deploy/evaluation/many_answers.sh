#!/usr/bin/env bash
# Measures the tasks with many labels and with free answers (README.md) on a server of its own, with the default model or that of
# C3PO_MODEL: the model alone, gradient descent, and the neighbors' vote beside the rows that every report has (majority,
# batch-offset, label-offset), or where answers are free, in-context learning with three neighbors. A run that was interrupted goes on where it stopped.
#   many_answers.sh [FOLDER]       default build/evaluation/many-answers; report.md and the runs go there
#   C3PO_MANY_LIMIT                questions per task (60)
#   C3PO_MANY_TASKS                which tasks, by spaces (all eleven; the seven with choices are in the first table)
#   C3PO_MANY_REFERENCES           references per task (300; of the two with intents all, so that each label has its twelve)
#   C3PO_MANY_OFFSET_REFERENCES    per task, scored for the row label-offset (60, at most 200)
#
# What a question costs grows with its labels: the prompt is read once, then each label's tokens, 77 labels of bank_intents some 230
# rows in place of SST-2's 2. Descent with the loss over choices would run that for each neighbor in each step, a minute a question on
# two cores. Here it has the loss of the right answer alone (--objective answer), as cheap as with two labels.
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT=${1:-build/evaluation/many-answers}
LIMIT=${C3PO_MANY_LIMIT:-60}
REFERENCES=${C3PO_MANY_REFERENCES:-300}
OFFSET_REFERENCES=${C3PO_MANY_OFFSET_REFERENCES:-60}
LABELS=(household_intents bank_intents jeopardy_topic wikihow_topic medical_subject mmlu_subject commonsense_qa)
FREE=(procedural_free natural_questions squad coqa)
read -ra TASKS <<<"${C3PO_MANY_TASKS:-${LABELS[*]} ${FREE[*]}}"

. deploy/evaluation/evaluation_server.sh

# wanted TASKS...: those of them that are asked for, by commas.
wanted() {
  local task asked=()
  for task in "$@"; do
    if [[ " ${TASKS[*]} " == *" $task "* ]]; then asked+=("$task"); fi
  done
  join "${asked[@]}"
}

for task in "${TASKS[@]}"; do
  if [[ " ${LABELS[*]} ${FREE[*]} " != *" $task "* ]]; then
    echo "many_answers.sh: no task $task; there are ${LABELS[*]} ${FREE[*]}" >&2
    exit 2
  fi
done

heading "1/3 References"
mkdir -p "$OUT"
"$(tools_python)" deploy/evaluation/build_suite.py "$SUITE"
start_server "$OUT"
for task in "${TASKS[@]}"; do
  limit=$REFERENCES
  if [[ $task == *_intents ]]; then limit=0; fi
  c3po refs import "$SUITE/$task/references.jsonl" --collection "$task" --limit "$limit"
done

heading "2/3 Held-out questions"
RUNS=()
ask() {
  local name=$1
  shift
  c3po eval --suite "$SUITE" --limit "$LIMIT" "${DESCENT[@]}" --set ngd.objective=answer --out "$OUT/$name" "$@"
  RUNS+=("$OUT/$name")
}
labels=$(wanted "${LABELS[@]}") free=$(wanted "${FREE[@]}")
if [ -n "$labels" ]; then
  ask labels --task "$labels" --methods none,ngd,knn --offset-references "$OFFSET_REFERENCES"
fi
if [ -n "$free" ]; then ask free --task "$free" --methods none,ngd,icl --icl-shots 3; fi

heading "3/3 Report"
: >"$OUT/report.md"
for run in "${RUNS[@]}"; do c3po report "$run" --format markdown >>"$OUT/report.md"; done
cat "$OUT/report.md"
