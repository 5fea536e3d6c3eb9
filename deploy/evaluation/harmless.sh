#!/usr/bin/env bash
# Measures what the defaults do to what they should leave alone, and to what they are for, on collections that nobody calibrated:
#   everyday   greedy answers to everyday.jsonl, which no collection is about, asked over each collection: how many change
#   tasks      held-out questions of the adaptation tasks: accuracy beside the model alone, improved and worsened
# Methods: none; before: the defaults up to version 0.1.0, near the paper's; paper: its settings; default: what a request gets.
# A run that was interrupted goes on where it stopped.
#   harmless.sh [FOLDER]           default build/harmless; harmless.md goes there
#   C3PO_HARMLESS_QUESTIONS        per task (60)
#   C3PO_HARMLESS_REFERENCES       per collection (150)
#   C3PO_HARMLESS_TASKS            (sst2,mrpc,rte,boolq,cb,copa)
#   C3PO_HARMLESS_SKIP             held-out questions that are left out from the start of each task's, TASK=COUNT by commas: those that the
#                                  defaults were chosen by (sst2=30,mrpc=30,rte=30,boolq=24); CB has none to spare
#   C3PO_HARMLESS_METHODS          of the tasks (none,before,default)
#   C3PO_HARMLESS_SETTINGS         more `--set LABEL.field=value` for `c3po eval`, to try other defaults
#   C3PO_HARMLESS_EVERYDAY         prompts of everyday.jsonl (72); C3PO_HARMLESS_EVERYDAY_METHODS (none,before,default)
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT=${1:-build/harmless}
QUESTIONS=${C3PO_HARMLESS_QUESTIONS:-60}
REFERENCES=${C3PO_HARMLESS_REFERENCES:-150}
IFS=, read -ra TASKS <<<"${C3PO_HARMLESS_TASKS:-sst2,mrpc,rte,boolq,cb,copa}"
IFS=, read -ra SKIP <<<"${C3PO_HARMLESS_SKIP:-sst2=30,mrpc=30,rte=30,boolq=24}"
METHODS=${C3PO_HARMLESS_METHODS:-none,before,default}
EVERYDAY_METHODS=${C3PO_HARMLESS_EVERYDAY_METHODS:-none,before,default}
. deploy/evaluation/evaluation_server.sh

# NAMES: with the settings that each name stands for, as arguments of `c3po eval`, in ARGUMENTS.
arguments_of() {
  ARGUMENTS=()
  local name names=()
  for name in ${1//,/ }; do
    case $name in
      none | paper) names+=("$name") ;;
      default) names+=(default=profile) ;;
      *) names+=("$name=ngd") ;;
    esac
    if [ "$name" = before ]; then ARGUMENTS+=("${BEFORE[@]}"); fi
  done
  ARGUMENTS+=(--methods "$(join "${names[@]}")")
  local setting
  for setting in ${C3PO_HARMLESS_SETTINGS:-}; do
    if [[ ,$1, == *",${setting%%.*},"* ]]; then ARGUMENTS+=(--set "$setting"); fi
  done
}

PYTHON=$(tools_python)
"$PYTHON" deploy/evaluation/build_suite.py "$SUITE"
heading "A server on $OUT"
start_server "$OUT"
for task in "${TASKS[@]}"; do c3po refs import "$SUITE/$task/references.jsonl" --collection "$task" --limit "$REFERENCES"; done

heading "Everyday prompts over each collection"
head -n "${C3PO_HARMLESS_EVERYDAY:-72}" deploy/evaluation/everyday.jsonl >"$OUT/everyday.jsonl"
arguments_of "$EVERYDAY_METHODS"
for task in "${TASKS[@]}"; do
  c3po eval --task "$OUT/everyday.jsonl" --collection "$task" --metric exact_match --max-tokens 16 "${ARGUMENTS[@]}" \
    --out "$OUT/everyday-$task" >/dev/null
done

heading "Held-out questions"
mkdir -p "$OUT/suite"
cp "$SUITE/suite.json" "$OUT/suite"
for task in "${TASKS[@]}"; do
  mkdir -p "$OUT/suite/$task"
  cp "$SUITE/$task/references.jsonl" "$OUT/suite/$task"
  skip=0
  for entry in "${SKIP[@]}"; do if [ "${entry%%=*}" = "$task" ]; then skip=${entry#*=}; fi; done
  tail -n "+$((skip + 1))" "$SUITE/$task/heldout.jsonl" >"$OUT/suite/$task/heldout.jsonl"
done
arguments_of "$METHODS"
c3po eval --suite "$OUT/suite" --task "$(join "${TASKS[@]}")" --limit "$QUESTIONS" "${ARGUMENTS[@]}" --out "$OUT/tasks"

heading "Report"
{
  "$PYTHON" deploy/evaluation/unchanged_answers.py "$OUT"/everyday-*
  printf '\n'
  c3po report "$OUT/tasks" --format markdown
} | tee "$OUT/harmless.md"
