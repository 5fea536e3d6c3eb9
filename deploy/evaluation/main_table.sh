#!/usr/bin/env bash
# Measures the main table of RESULTS.md: builds what is missing, starts a server of its own with the default model, imports the
# suite's references, learns each collection's prior, stores its profile, asks the held-out questions with every method, and
# writes the report. A run that was interrupted goes on where it stopped.
#   main_table.sh [FOLDER]    default build/evaluation; report.html, report.md and the runs go there
#   C3PO_ADAPTATION_LIMIT, C3PO_KNOWLEDGE_LIMIT, C3PO_REFERENCE_LIMIT    questions and references per task (450, 400, 300)
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT=${1:-build/evaluation}
ADAPTATION_LIMIT=${C3PO_ADAPTATION_LIMIT:-450}
KNOWLEDGE_LIMIT=${C3PO_KNOWLEDGE_LIMIT:-400}
REFERENCE_LIMIT=${C3PO_REFERENCE_LIMIT:-300}
CACHE_DIR=${C3PO_CACHE_DIR:-$HOME/.cache/c3po}
SUITE=$CACHE_DIR/suite
ADAPTATION=(sst2 mrpc rte boolq cb copa)
KNOWLEDGE=(arc_easy arc_challenge openbookqa piqa hellaswag winogrande mmlu)

heading() { printf '\n\033[1;36m== %s\033[0m\n' "$*"; }

heading "1/5 Installing and building what is missing"
deploy/install_deps.sh
cmake --preset release >/dev/null
cmake --build --preset release --target c3pod c3po
mkdir -p "$OUT"
"$(ls -d "$CACHE_DIR"/tools-*/bin/python | sort -V | tail -n 1)" deploy/evaluation/build_suite.py "$SUITE"

heading "2/5 Starting a server"
build/release/bin/c3pod --allow-oracle --store "$OUT/references.db" --listen 127.0.0.1:0 --metrics-port -1 \
  --neighbor-cache-mb 4096 2>"$OUT/server.log" &
SERVER_PID=$!
trap 'kill -TERM $SERVER_PID 2>/dev/null; wait $SERVER_PID || true' EXIT
SERVER=
for _ in $(seq 240); do
  SERVER=$(sed -n 's/.*"serving".*"address":"\([^"]*\)".*/\1/p' "$OUT/server.log")
  if [ -n "$SERVER" ]; then break; fi
  if ! kill -0 "$SERVER_PID" 2>/dev/null; then cat "$OUT/server.log" >&2; exit 1; fi
  sleep 0.5
done
c3po() { build/release/bin/c3po --server "$SERVER" "$@"; }
c3po info

heading "3/5 References, priors and profiles"
for task in "${ADAPTATION[@]}" "${KNOWLEDGE[@]}"; do
  c3po refs import "$SUITE/$task/references.jsonl" --collection "$task" --limit "$REFERENCE_LIMIT"
done
# What the default method does with a collection: descent over twelve labeled neighbors in the last eight layers where samples teach
# how to answer, the learned shift alone where they do not (RESULTS.md tells how these were chosen).
DESCENT='{"method":"METHOD_NEIGHBORHOOD_GRADIENT_DESCENT","k":12,"steps":8,"learningRate":0.05,"coreExperts":0,
  "criticalLayers":[22,23,24,25,26,27,28,29],"applicationRule":"APPLICATION_RULE_ROUTER_SHIFT","objective":"OBJECTIVE_CHOICES",
  "referenceSelection":"REFERENCE_SELECTION_ALL"}'
PRIOR='{"method":"METHOD_COLLECTION_PRIOR"}'
learn() {  # task, epochs, profile
  if c3po refs profile show --collection "$1" --json 2>/dev/null | grep -q '"profile"'; then return; fi
  local profile=$3
  c3po refs tune --collection "$1" --critical-layers 22-29 --epochs "$2" --learning-rate 0.02
  # Where no shift was better than none, a profile cannot ask for it.
  if [ "$profile" = "$PRIOR" ] && ! c3po refs profile show --collection "$1" --json | grep -q '"prior"'; then
    profile='{"method":"METHOD_NONE"}'
  fi
  c3po refs profile set --collection "$1" "$profile"
}
for task in "${ADAPTATION[@]}"; do learn "$task" 12 "$DESCENT"; done
for task in "${KNOWLEDGE[@]}"; do learn "$task" 3 "$PRIOR"; done

heading "4/5 Held-out questions"
join() { local IFS=,; echo "$*"; }
c3po eval --suite "$SUITE" --task "$(join "${ADAPTATION[@]}")" --limit "$ADAPTATION_LIMIT" --methods none,profile,prior,knn \
  --k 12 --references all --out "$OUT/adaptation"
c3po eval --suite "$SUITE" --task "$(join "${KNOWLEDGE[@]}")" --limit "$KNOWLEDGE_LIMIT" --methods none,profile,knn \
  --k 12 --references all --out "$OUT/knowledge"

heading "5/5 Report"
c3po report "$OUT/adaptation" "$OUT/knowledge" --format markdown >"$OUT/report.md"
c3po report "$OUT/adaptation" "$OUT/knowledge" --out "$OUT/report.html"
cat "$OUT/report.md"
echo "pictures: $OUT/report.html"
