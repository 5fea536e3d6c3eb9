#!/usr/bin/env bash
# Measures what the paper measured (C3PO, arXiv 2504.07964): six benchmarks, asked by the model alone, in-context learning, router
# tuning, mode finding, kernel regression, gradient descent and the oracle, in the paper's settings. Writes a table with the
# paper's figures beside the measured ones. A run that was ended, however, goes on by the same command.
#   paper.sh --model DIR|ORG/NAME [OPTIONS] [-- FLAGS of c3pod]
#   --device cpu|cuda     where c3pod computes (cpu)
#   --data DIR|suite      the datasets: paper_files.py tells the files. Default: the Hugging Face cache
#   --out FOLDER          of the run (build/paper/NAME of the model); paper.md, report.html and the answers go there
#   --hours N             of this call: as many questions of each benchmark as fit, evenly; it says what it left
#   --references N        of each benchmark at most (1000); with --hours no more than a third of the time allows
#   --mmlu letters|texts  what MMLU's choices are (letters; models of some hundred million parameters answer them at chance)
#   --ablations           its ablations as well: layers, experts, neighbors, steps, kernel, tokens; half of --hours is theirs
#   --ablation-questions N   of each benchmark at most (64; with --hours as many as fit)
#   --plan                prints what the full run needs, by a trial of 2 questions of each benchmark, and ends
#   --seconds-per-question S   with --plan: this rate in place of the trial; then config.json will do, without the weights
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/evaluation/evaluation_server.sh

usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "$0" >&2
  exit 2
}
fail() {
  printf 'paper.sh: %s\n' "$*" >&2
  exit 2
}

MODEL='' DEVICE=cpu DATA='' OUT='' HOURS='' REFERENCES=1000 MMLU=letters ABLATIONS=0 ABLATION_QUESTIONS='' PLAN=0 STATED_RATE=''
while [ $# -gt 0 ]; do
  case $1 in
    --ablations) ABLATIONS=1 ;;
    --plan) PLAN=1 ;;
    --) shift && break ;;
    --model | --device | --data | --out | --hours | --references | --mmlu | --ablation-questions | --seconds-per-question)
      [ $# -ge 2 ] || fail "$1: a value is missing"
      case $1 in
        --model) MODEL=$2 ;;
        --device) DEVICE=$2 ;;
        --data) DATA=$2 ;;
        --out) OUT=$2 ;;
        --hours) HOURS=$2 ;;
        --references) REFERENCES=$2 ;;
        --mmlu) MMLU=$2 ;;
        --ablation-questions) ABLATION_QUESTIONS=$2 ;;
        --seconds-per-question) STATED_RATE=$2 ;;
      esac
      shift
      ;;
    --help | -h) usage ;;
    *) fail "$1: no such option; --help lists them" ;;
  esac
  shift
done
SERVER_FLAGS=("$@")
[ -n "$MODEL" ] || fail "--model DIR|ORG/NAME is missing, e.g. allenai/OLMoE-1B-7B-0924 or deepseek-ai/deepseek-moe-16b-base"
[[ $DEVICE = cpu || $DEVICE = cuda ]] || fail "--device $DEVICE: must be cpu or cuda"
for pair in "--hours=$HOURS" "--seconds-per-question=$STATED_RATE"; do
  [[ ${pair#*=} =~ ^([0-9]+\.?[0-9]*|\.[0-9]+)?$ ]] || fail "${pair%%=*} ${pair#*=}: is no number"
done
[[ -z $ABLATION_QUESTIONS || $ABLATION_QUESTIONS =~ ^[1-9][0-9]*$ ]] || fail "--ablation-questions $ABLATION_QUESTIONS: is no whole number above 0"
[[ -x $BIN/c3pod && -x $BIN/c3po ]] || fail "$BIN has no c3pod and c3po: cmake --preset release && cmake --build --preset release --target c3pod c3po"
BEGAN=$EPOCHREALTIME
PYTHON=$(tools_python)
[ -x "$PYTHON" ] || fail "no Python tools: deploy/install_deps.sh brings them"
planner() { "$PYTHON" deploy/evaluation/paper_plan.py "$@"; }
since() { awk -v now="$EPOCHREALTIME" -v then="$1" 'BEGIN { printf "%.3f", now - then }'; }

if [[ $PLAN = 1 && -n $STATED_RATE ]]; then MODEL_FOLDER=$(planner model "$MODEL" --config-only); else MODEL_FOLDER=$(planner model "$MODEL"); fi
OUT=${OUT:-build/paper/$(basename "$MODEL")}
mkdir -p "$OUT/runs" "$OUT/tuned" "$OUT/ablations"
heading "Questions"
"$PYTHON" deploy/evaluation/paper_questions.py "$OUT/suite" --data "$DATA" --references "$REFERENCES" --mmlu "$MMLU" --suite "$SUITE"
if ! "$BIN/c3po" model inspect "$MODEL_FOLDER" --json >"$OUT/card.json"; then
  # Without weights it says what it can.
  if [[ $PLAN = 0 || -z $STATED_RATE ]] || ! grep -q '"memory_bytes"' "$OUT/card.json"; then
    fail "$MODEL_FOLDER does not load: $(cat "$OUT/card.json")"
  fi
fi
TASKS=(mmlu hellaswag arc_challenge arc_easy piqa winogrande)
NEIGHBOR_CACHE_MB=$(planner cache "$OUT/card.json" "$OUT/suite/suite.json")

# The paper's settings of every field, at the size of the model that is served. A large model on a CPU may take minutes for an answer.
PAPER=(--preset paper --concurrency "$([ "$DEVICE" = cuda ] && echo 16 || echo 2)" --timeout 3600)
METHODS=none,icl,mode,kernel,ngd,oracle
TUNED_METHODS=none,icl,prior,mode,kernel,ngd,oracle

serve() { start_server "$1" --model "$MODEL_FOLDER" --device "$DEVICE" "${SERVER_FLAGS[@]}"; }
import() { c3po refs import "$OUT/suite/$1/references.jsonl" --collection "$1" --limit "$2" >/dev/null; }
# tune TASK EPOCHS: a router shift over the references, in the layers that the paper moves. Long references want much memory for a
# minibatch: c3pod refuses one that is too large (INVALID_ARGUMENT, exit code 4), and half of it is tried.
tune() {
  local batch status
  for batch in 16 8 4 2 1; do
    status=0
    c3po refs tune --collection "$1" --critical-layers "$(last_layers 5)" --epochs "$2" --batch-size "$batch" >/dev/null 2>"$OUT/tune.log" || status=$?
    case $status in
      0 | 6) return ;;  # 6, FAILED_PRECONDITION: fewer references than it learns from.
      4) ;;
      *) break ;;
    esac
  done
  fail "router tuning of $1: $(cat "$OUT/tune.log")"
}
has_prior() { c3po refs profile show --collection "$1" --json | grep -q '"prior"'; }

# A few references and questions of each benchmark through every stage; what each took is in $OUT/trial/rates.jsonl.
trial() {
  local folder=$OUT/trial task began
  if [ -s "$folder/rates.jsonl" ]; then return; fi
  heading "Trial: 16 references and 2 questions of each benchmark"
  rm -rf "$folder"
  serve "$folder"
  note() { printf '{"task":"%s","stage":"%s","count":%d,"seconds":%s}\n' "$1" "$2" "$3" "$(since "$began")" >>"$folder/rates.part"; }
  for task in "${TASKS[@]}"; do
    began=$EPOCHREALTIME
    import "$task" 16
    note "$task" import "$(head -n 16 "$OUT/suite/$task/references.jsonl" | wc -l)"
    began=$EPOCHREALTIME
    tune "$task" 1
    note "$task" tune "$(head -n 16 "$OUT/suite/$task/references.jsonl" | wc -l)"
    began=$EPOCHREALTIME
    # An answer may fail, by a question that is too long for the model; a trial without any answer is none.
    c3po eval --suite "$OUT/suite" --task "$task" --limit 2 --methods "$METHODS" "${PAPER[@]}" --offset-references 0 \
      --out "$folder/runs/$task" >/dev/null || true
    [ -s "$folder/runs/$task/items.jsonl" ] || fail "the trial has no answer to any question of $task"
    note "$task" ask "$(head -n 2 "$OUT/suite/$task/heldout.jsonl" | wc -l)"
  done
  awk '/^VmHWM:/ { printf "{\"stage\":\"memory\",\"bytes\":%.0f}\n", $2 * 1024 }' "/proc/$SERVER_PID/status" >>"$folder/rates.part"
  printf '{"stage":"store","bytes":%d,"count":%d}\n' "$(stat -c %s "$folder/references.db")" $((16 * ${#TASKS[@]})) >>"$folder/rates.part"
  stop_server
  mv "$folder/rates.part" "$folder/rates.jsonl"
}

if [ "$PLAN" = 1 ]; then
  known=(--seconds-per-question "$STATED_RATE")
  if [ -z "$STATED_RATE" ]; then
    trial
    known=(--rates "$OUT/trial/rates.jsonl")
  fi
  heading "What the full run needs"
  planner plan "$OUT/card.json" "$OUT/suite/suite.json" --device "$DEVICE" ${HOURS:+--hours "$HOURS"} \
    "${known[@]}"
  exit 0
fi

# As many references as were chosen once: a collection that grows would be another one.
if [ ! -s "$OUT/references" ]; then
  if [ -n "$HOURS" ]; then
    trial
    planner sizes "$OUT/suite/suite.json" --rates "$OUT/trial/rates.jsonl" --hours "$HOURS" >"$OUT/references.part"
  else
    echo "$REFERENCES" >"$OUT/references.part"
  fi
  mv "$OUT/references.part" "$OUT/references"
fi

heading "A server on $MODEL_FOLDER"
serve "$OUT"
heading "References and router tuning: $(cat "$OUT/references") of each benchmark at most"
for task in "${TASKS[@]}"; do
  if [ -s "$OUT/tuned/$task" ]; then continue; fi
  import "$task" "$(cat "$OUT/references")"
  tune "$task" 8
  if has_prior "$task"; then echo prior >"$OUT/tuned/$task"; else echo none >"$OUT/tuned/$task"; fi
  echo "$task: $(sed 's/prior/a shift is stored/;s/none/no shift lowers the loss of references held apart/' "$OUT/tuned/$task")"
done

# How many answers there are, of all runs.
answers() { find "$OUT/runs" "$OUT/ablations" -name items.jsonl -exec cat {} + | wc -l; }

# seconds_left SHARE: of that share of the hours; empty where there is no budget.
seconds_left() { if [ -n "$HOURS" ]; then awk -v h="$HOURS" -v s="$1" -v gone="$(since "$BEGAN")" 'BEGIN { printf "%.3f", h * 3600 * s - gone }'; fi; }

# within SHARE COMMAND...: runs `c3po COMMAND...` and ends it, as Ctrl-C would, when the time is up. An answer that failed is
# told and asked again by the next round; the others count. What asked nothing is a mistake. Returns 1 where the time was up.
within() {
  local left status=0 before
  left=$(seconds_left "$1") before=$(answers)
  shift
  if [[ -n $left && ${left%%.*} -le 0 ]]; then return 1; fi
  "${DIES_WITH_SCRIPT[@]}" timeout --foreground --signal INT --kill-after 60 "${left:-0}" "$BIN/c3po" --server "$SERVER" "$@" >/dev/null ||
    status=$?
  case $status in
    0) ;;
    9 | 124 | 137) return 1 ;;
    *)
      kill -0 "$SERVER_PID" 2>/dev/null || fail "c3pod ended: $OUT/server.log"
      [[ $status -eq 1 || $(answers) -gt $before ]] || fail "no answer came from: c3po $*"
      ;;
  esac
}

# rounds NAME SHARE MOST COMMAND: asks by COMMAND LIMIT, with ever more questions of each benchmark, until all MOST ('': every one)
# are asked or the time is up. $OUT/NAME.limit: what the last round asks, which a run that goes on finishes first.
rounds() {
  local name=$1 share=$2 most=$3 command=$4 limit asked=0 rate='' left began before
  limit=$(cat "$OUT/$name.limit" 2>/dev/null || true)
  while :; do
    left=$(seconds_left "$share")
    if [ -z "$limit" ]; then
      limit=$(planner next "$OUT/suite/suite.json" --asked "$asked" ${most:+--most "$most"} ${left:+--seconds-left "$left"} ${rate:+--rate "$rate"})
      if [ -z "$limit" ]; then return; fi
      echo "$limit" >"$OUT/$name.limit.part"
      mv "$OUT/$name.limit.part" "$OUT/$name.limit"
    fi
    if [[ -n $left && ${left%%.*} -le 0 ]]; then return; fi
    heading "$name: up to $limit questions of each benchmark"
    began=$EPOCHREALTIME before=$(answers)
    "$command" "$limit" || return 0
    # Of a question by all methods that ask it: what the next round is planned by.
    rate=$(awk -v seconds="$(since "$began")" -v new=$(($(answers) - before)) -v each="$ANSWERS_EACH" \
      'BEGIN { if (new > 0) printf "%.6f", seconds / new * each }')
    asked=$limit limit=''
  done
}

ask_table() {
  local task methods
  for task in "${TASKS[@]}"; do
    methods=$METHODS
    if [ "$(cat "$OUT/tuned/$task")" = prior ]; then methods=$TUNED_METHODS; fi
    within "$TABLE_SHARE" eval --suite "$OUT/suite" --task "$task" --limit "$1" --methods "$methods" "${PAPER[@]}" --out "$OUT/runs/$task" || return 1
  done
}
ANSWERS_EACH=7
TABLE_SHARE=1
if [ "$ABLATIONS" = 1 ]; then TABLE_SHARE=0.5; fi
rounds table "$TABLE_SHARE" '' ask_table

# The paper's points, at the size of the model: table 3 to 6, figures 3 and 4.
ablate() {
  local limit=$1 variable=$2
  shift 2
  within 1 ablate --suite "$OUT/suite" --task "$(join "${TASKS[@]}")" --limit "$limit" --variable "$variable" --points "$1" "${PAPER[@]}" \
    --out "$OUT/ablations/$variable"
}
ask_ablations() {
  local choice methods=none settings=() experts=()
  while read -r choice; do
    methods+=",${choice%%=*}=ngd"
    settings+=(--set "${choice%%=*}.critical_layers=${choice#*=}")
  done < <(planner layers "$MOE_LAYERS")
  within 1 eval --suite "$OUT/suite" --task "$(join "${TASKS[@]}")" --limit "$1" --methods "$methods" "${settings[@]}" "${PAPER[@]}" \
    --out "$OUT/ablations/layers" || return 1
  for choice in 8 12 20; do if [ "$choice" -lt "$EXPERTS" ]; then experts+=("$choice"); fi; done
  ablate "$1" core-experts "$(join "${experts[@]}" 0)" && ablate "$1" k 1,3,5 && ablate "$1" epsilon 0.3,0.5,0.7 &&
    ablate "$1" steps 3,5,10,20,50 && ablate "$1" kernel linear,polynomial,matern,gaussian && ablate "$1" prompt-positions 1,3
}
if [ "$ABLATIONS" = 1 ]; then
  ANSWERS_EACH=40
  if [ -z "$HOURS" ]; then ABLATION_QUESTIONS=${ABLATION_QUESTIONS:-64}; fi
  rounds ablations 1 "$ABLATION_QUESTIONS" ask_ablations
fi

heading "Report"
asked=()
for task in "${TASKS[@]}"; do if [ -s "$OUT/runs/$task/items.jsonl" ]; then asked+=("$OUT/runs/$task"); fi; done
if [ ${#asked[@]} = 0 ]; then fail "--hours $HOURS: no question fits after references and router tuning; what was learned is kept in $OUT"; fi
c3po report "${asked[@]}" --format json >"$OUT/report.json"
c3po report "${asked[@]}" --out "$OUT/report.html" >/dev/null
for folder in "$OUT/ablations"/*/; do
  if [ -s "$folder/items.jsonl" ]; then c3po report "$folder" --format json >"${folder%/}.json"; fi
done
"$PYTHON" deploy/evaluation/paper_table.py "$OUT" --architecture "$(sed -n 's/.*"family":"\([^"]*\)".*/\1/p' "$OUT/card.json")" >"$OUT/paper.md.part"
mv "$OUT/paper.md.part" "$OUT/paper.md"
cat "$OUT/paper.md"
echo "table: $OUT/paper.md; pictures: $OUT/report.html"
