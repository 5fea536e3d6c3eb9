#!/usr/bin/env bash
# Measures the main table of RESULTS.md: builds what is missing, starts a server of its own with the default model, or that of
# C3PO_MODEL, imports the suite's references, learns each collection's prior, stores its profile, asks the held-out questions
# with every method, and writes the report. A run that was interrupted goes on where it stopped.
#   main_table.sh [FOLDER]    default build/evaluation; report.md, report.html, all.html and the runs go there
#   C3PO_ADAPTATION_LIMIT, C3PO_CLAUSES_LIMIT, C3PO_KNOWLEDGE_LIMIT      questions per task (150, 25, 100)
#   C3PO_IN_CONTEXT_LIMIT                                                of them, asked with three neighbors in the prompt (40)
#   C3PO_OFFSET_REFERENCES                                               per task and method, that a label offset is fitted to (80)
#   C3PO_MANY_ANSWERS                                                    1: many_answers.sh at the end, into FOLDER/many-answers
#   C3PO_ADAPTATION_REFERENCE_LIMIT, C3PO_KNOWLEDGE_REFERENCE_LIMIT      references per task (300, 200)
# The limits keep it within an hour on two cores, from the seconds per question in RESULTS.md (two in flight: none 0.22, ngd 0.65
# without COPA): installing and building 12 minutes, references, priors and profiles 23, the tasks of labels 17 (of them 4 for
# offsets), clauses 3, in-context learning 1, knowledge 2. The first figures to raise are the first two: twice as many questions of
# the tasks of labels take 12 minutes more.
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT=${1:-build/evaluation}
ADAPTATION_LIMIT=${C3PO_ADAPTATION_LIMIT:-150}
CLAUSES_LIMIT=${C3PO_CLAUSES_LIMIT:-25}
KNOWLEDGE_LIMIT=${C3PO_KNOWLEDGE_LIMIT:-100}
IN_CONTEXT_LIMIT=${C3PO_IN_CONTEXT_LIMIT:-40}
OFFSET_REFERENCES=${C3PO_OFFSET_REFERENCES:-80}
ADAPTATION_REFERENCE_LIMIT=${C3PO_ADAPTATION_REFERENCE_LIMIT:-300}
KNOWLEDGE_REFERENCE_LIMIT=${C3PO_KNOWLEDGE_REFERENCE_LIMIT:-200}
# The questions of LABELLED share their choices; those of CLAUSES have clauses of their own, at ten times the time of a label.
LABELLED=(sst2 mrpc rte boolq cb)
CLAUSES=(copa)
ADAPTATION=("${LABELLED[@]}" "${CLAUSES[@]}")
KNOWLEDGE=(arc_easy arc_challenge openbookqa piqa hellaswag winogrande mmlu)

. deploy/evaluation/evaluation_server.sh

heading "1/5 Installing and building what is missing"
deploy/install_deps.sh
cmake --preset release >/dev/null
cmake --build --preset release --target c3pod c3po
mkdir -p "$OUT"
"$(tools_python)" deploy/evaluation/build_suite.py "$SUITE"

heading "2/5 Starting a server"
# One call learns at a time, in 2 GiB: a minibatch of 16 of PIQA's references with their clauses takes 643 MiB.
start_server "$OUT" --work-memory-mb 4096 --learning-calls-max 1
c3po info
PRIOR_TASKS="${KNOWLEDGE[*]}"
# Of the default model it is known that in the others a prior never lowers the loss, or is found not to help (RESULTS.md).
if [ "$MODEL_NAME" = smollm2-135m-moe ]; then PRIOR_TASKS="piqa"; fi

heading "3/5 References, priors and profiles"
import() { c3po refs import "$SUITE/$1/references.jsonl" --collection "$1" --limit "$2"; }
for task in "${ADAPTATION[@]}"; do import "$task" "$ADAPTATION_REFERENCE_LIMIT"; done
for task in "${KNOWLEDGE[@]}"; do import "$task" "$KNOWLEDGE_REFERENCE_LIMIT"; done
# The default method of a collection is what `c3po calibrate` stores as its profile, from the references alone: for the
# adaptation tasks it searches settings, for the knowledge tasks it says whether the prior helps. Where questions share their
# choices it is the method with a label offset, the offset alone, or neither.
# Two of five references are held apart from the prior: those are what calibrate may judge it by.
tune() {
  c3po refs tune --collection "$1" --critical-layers "$CRITICAL" --learning-rate 0.02 --epochs "$2" --patience "$3" --validation-fraction 0.4
}
for task in "${ADAPTATION[@]}"; do
  has_learned prior "$task" || tune "$task" 16 4
  has_learned profile "$task" || c3po calibrate --collection "$task" --critical-layers "$CRITICAL" --questions 120 --budget-seconds 60 --fresh \
    --offset-references "$OFFSET_REFERENCES"
done
for task in "${KNOWLEDGE[@]}"; do
  if has_learned profile "$task"; then continue; fi
  if [[ " $PRIOR_TASKS " == *" $task "* ]]; then tune "$task" 8 2; fi
  # Where no prior was better than none, on references apart, there is nothing to calibrate.
  if has_learned prior "$task"; then
    c3po calibrate --collection "$task" --critical-layers "$CRITICAL" --questions 80 --method prior --budget-seconds 1 --fresh
  else
    c3po refs profile set --collection "$task" '{"method":"METHOD_NONE"}'
  fi
done

heading "4/5 Held-out questions"
# Each row once as it is and once with the label offset that the server fits after it, beside the offset alone. Two rows that differ
# in the offset only are one request. What has no row without it is what no offset can replace: pairs of neighbors with different
# answers, as many of each, near what the model alone says at them.
c3po eval --suite "$SUITE" --task "$(join "${LABELLED[@]}")" --limit "$ADAPTATION_LIMIT" \
  --methods none,offset,ngd,ngd+offset,profile,profile+offset,pairs+offset,knn "${DESCENT[@]}" \
  --set pairs+offset.balance=true --set pairs+offset.trust=0.1 --offset-references "$OFFSET_REFERENCES" --out "$OUT/labels"
c3po eval --suite "$SUITE" --task "$(join "${CLAUSES[@]}")" --limit "$CLAUSES_LIMIT" --methods none,ngd,profile,knn "${DESCENT[@]}" \
  --out "$OUT/clauses"
# In-context learning reads four times the text: a run of its own, on the first questions of each task. The references' scores
# are the model's own, so that it takes those of the first run.
mkdir -p "$OUT/in-context"
if [ -f "$OUT/labels/reference_scores.jsonl" ]; then cp "$OUT/labels/reference_scores.jsonl" "$OUT/in-context"; fi
c3po eval --suite "$SUITE" --task "$(join "${LABELLED[@]}")" --limit "$IN_CONTEXT_LIMIT" --methods none,icl --icl-shots 3 \
  --offset-references "$OFFSET_REFERENCES" --out "$OUT/in-context"
# Every knowledge question has choices of its own, so that its neighbors have no vote.
c3po eval --suite "$SUITE" --task "$(join "${KNOWLEDGE[@]}")" --limit "$KNOWLEDGE_LIMIT" --methods none,profile \
  --out "$OUT/knowledge"

heading "5/5 Report"
# First what is beyond the labels' offset: the rows with it are of the tasks of labels, pooled over these.
RUNS=("$OUT/labels" "$OUT/clauses" "$OUT/knowledge")
{
  c3po report "$OUT/labels" --format markdown
  printf '\n## In-context learning, three neighbors\n\n' && c3po report "$OUT/in-context" --format markdown
  printf '\n## All tasks\n\n' && c3po report "${RUNS[@]}" --format markdown
} >"$OUT/report.md"
c3po report "$OUT/labels" --out "$OUT/report.html"
c3po report "${RUNS[@]}" --out "$OUT/all.html"
cat "$OUT/report.md"
if [ "${C3PO_MANY_ANSWERS:-0}" = 1 ]; then
  stop_server
  deploy/evaluation/many_answers.sh "$OUT/many-answers"
fi
echo "pictures: $OUT/report.html, of all tasks $OUT/all.html"
