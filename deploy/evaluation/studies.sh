#!/usr/bin/env bash
# The tables beside the main one, on the references and profiles that main_table.sh left in FOLDER: every method, what limits the
# lift (headroom by the oracle, transfer by weaker and fewer references, embedding by another one), and the ablations. A run that was
# interrupted goes on where it stopped.
#   studies.sh [FOLDER]    default build/evaluation; studies.md goes there
#   C3PO_STUDY_LIMIT       questions per task (default 50)
#   C3PO_STUDIES           which of methods,limits,generation,embedding,ablations,training (default all)
#   C3PO_ABLATION_TASK     what the ablations ask (default sst2)
#   C3PO_ABLATIONS         which variables of theirs (default all)
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT=${1:-build/evaluation}
LIMIT=${C3PO_STUDY_LIMIT:-50}
STUDIES=,${C3PO_STUDIES:-methods,limits,generation,embedding,ablations,training},
. deploy/evaluation/evaluation_server.sh

wanted() { [[ $STUDIES == *",$1,"* ]]; }
ask() { c3po eval --suite "$SUITE" "${DESCENT[@]}" "$@"; }

heading "A server on $OUT"
start_server "$OUT"
LEARNING=(--steps 8 --learning-rate 0.05 --step-rule adam --core-experts 0 --critical-layers "$CRITICAL" --objective choices)
RUNS=()

if wanted methods; then
  heading "Methods"
  for task in sst2 mrpc rte cb copa; do c3po refs amortize --collection "$task" "${LEARNING[@]}"; done
  ask --task sst2,mrpc,rte,cb,copa --limit "$LIMIT" --out "$OUT/methods" \
    --methods none,ngd,oracle,kernel,mode,amortized,prior,from-prior=ngd,validated=ngd,icl,paper,public-code,profile,knn \
    --set from-prior.use_prior=true --set from-prior.learning_rate=0.02 --set validated.validation_neighbors=4
  RUNS+=(methods)
fi
if wanted limits; then
  heading "Limits: headroom and transfer"
  ask --task arc_easy,openbookqa,piqa --limit $((LIMIT / 2)) --methods none,ngd,oracle,icl --out "$OUT/headroom"
  # Neighbors that are easier than the question.
  ask --task arc_challenge --limit "$LIMIT" --methods none,ngd,easier=ngd --set easier.collection=arc_easy --out "$OUT/easier"
  RUNS+=(headroom easier)
fi
if wanted generation; then
  heading "Generation: the answer written, not chosen"
  for task in sst2 mrpc; do
    head -n "$LIMIT" "$SUITE/$task/heldout.jsonl" | sed -E 's/"choices": \[[^]]*\], ?//' >"$OUT/$task-generation.jsonl"
    ask --task "$OUT/$task-generation.jsonl" --collection "$task" --metric exact_match --max-tokens 4 --stop $'\n' \
      --methods none,ngd,every=ngd,prior,icl --set every.application_rule=every_new_token --out "$OUT/generation-$task"
    RUNS+=("generation-$task")
  done
fi
if wanted ablations; then
  heading "Ablations"
  TASK=${C3PO_ABLATION_TASK:-sst2}
  ablate() {
    local variable=$1
    shift
    if [[ -n ${C3PO_ABLATIONS:-} && ,$C3PO_ABLATIONS, != *",$variable,"* ]]; then return; fi
    c3po ablate --suite "$SUITE" --task "$TASK" --limit "$LIMIT" "${DESCENT[@]}" --variable "$variable" "$@" \
      --out "$OUT/ablation-$TASK-$variable"
    RUNS+=("ablation-$TASK-$variable")
  }
  ablate steps
  ablate learning-rate
  ablate k
  ablate epsilon
  ablate kernel
  ablate rule
  ablate prompt-positions
  ablate objective
  ablate selection
  ablate step-rule
  ablate core-experts
  ablate reference-set-size --import
  # Some of the layers that are served; of the default model's 30: 1,2,4,8,12,16,24,30 and 0,4,8,12,16,20,24,26,28,29.
  suffixes=() singles=()
  for count in 1 2 4 8 12 16 24 32 48 64; do if [ "$count" -lt "$MOE_LAYERS" ]; then suffixes+=("$count"); fi; done
  for ((layer = 0; layer < MOE_LAYERS; layer += (MOE_LAYERS + 7) / 8)); do singles+=("$layer"); done
  for layer in $((MOE_LAYERS - 4)) $((MOE_LAYERS - 1)); do if [ "$layer" -ge 0 ]; then singles+=("$layer"); fi; done
  ablate layers-suffix --points "$(join "${suffixes[@]}" "$MOE_LAYERS")"
  ablate layers-single --points "$(printf '%s\n' "${singles[@]}" | sort -nu | paste -sd,)"
fi
if wanted training; then
  heading "Training on the references: routers, soft prompts, prefixes, weights"
  nice "$(tools_python)" deploy/evaluation/fine_tuning.py --server "$SERVER" ${C3PO_MODEL:+--model "$C3PO_MODEL"} \
    --limit "$LIMIT" --out "$OUT/training" | tee "$OUT/training.md"
fi
if wanted embedding; then
  heading "Embedding: the model's own states in place of the sentence encoder"
  start_server "$OUT/model-embedding" --embedder model
  for task in sst2 mrpc; do c3po refs import "$SUITE/$task/references.jsonl" --collection "$task" --limit 300; done
  ask --task sst2,mrpc --limit "$LIMIT" --methods none,ngd,knn --out "$OUT/embedding"
  RUNS+=(embedding)
fi

heading "Report"
: >"$OUT/studies.md"
for run in "${RUNS[@]}"; do
  printf '## %s\n\n' "$run" >>"$OUT/studies.md"
  c3po report "$OUT/$run" --format markdown >>"$OUT/studies.md"
done
if wanted training; then { printf '## training\n\n' && cat "$OUT/training.md"; } >>"$OUT/studies.md"; fi
echo "$OUT/studies.md"
