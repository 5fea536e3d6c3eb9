#!/usr/bin/env bash
# From a fresh Debian 12 machine to answers: installs what is missing, builds, starts c3pod on loopback with the default model,
# imports reference samples, asks three questions, and compares 60 held-out reviews without C3PO and with it.
#   --once           stop the server at the end
#   C3PO_PORT        gRPC port (default 50051); C3PO_METRICS_PORT: HTTP port (default 9464)
#   C3PO_DATA_DIR    the reference store (default build/quickstart)
set -euo pipefail
cd "$(dirname "$0")/.."

ONCE=0
for argument in "$@"; do
  case $argument in
    --once) ONCE=1 ;;
    *) echo "usage: deploy/quickstart.sh [--once]" >&2; exit 2 ;;
  esac
done

CACHE_DIR=${C3PO_CACHE_DIR:-$HOME/.cache/c3po}
PORT=${C3PO_PORT:-50051}
METRICS_PORT=${C3PO_METRICS_PORT:-9464}
DATA_DIR=${C3PO_DATA_DIR:-build/quickstart}
SERVER=127.0.0.1:$PORT
REFERENCES=$CACHE_DIR/references

heading() { printf '\n\033[1;36m== %s\033[0m\n' "$*"; }
c3po() { build/release/bin/c3po --server "$SERVER" "$@"; }

heading "1/6 Installing what is missing"
deploy/install_deps.sh

heading "2/6 Building"
cmake --preset release >build-configure.log 2>&1 || { cat build-configure.log >&2; exit 1; }
rm -f build-configure.log
cmake --build --preset release --target c3pod c3po

heading "3/6 Starting c3pod on $SERVER"
mkdir -p "$DATA_DIR"
if c3po info --wait 0.1 >/dev/null 2>&1; then
  echo "port $PORT is taken by a server already; stop it, or set C3PO_PORT" >&2
  exit 1
fi
build/release/bin/c3pod --model "$CACHE_DIR/models/smollm2-135m-moe" --embedder "$CACHE_DIR/models/all-minilm-l6-v2" \
  --store "$DATA_DIR/references.db" --listen "$SERVER" --metrics-port "$METRICS_PORT" 2>"$DATA_DIR/server.log" &
SERVER_PID=$!
stop_server() { kill -TERM "$SERVER_PID" 2>/dev/null && wait "$SERVER_PID"; }
if [ "$ONCE" = 1 ]; then trap 'stop_server || true' EXIT; fi
for _ in $(seq 120); do
  if c3po info --wait 2 >/dev/null 2>&1; then break; fi
  if ! kill -0 "$SERVER_PID" 2>/dev/null; then cat "$DATA_DIR/server.log" >&2; exit 1; fi
done
c3po info

heading "4/6 Importing references: 300 science questions, 436 film reviews"
c3po refs import "$REFERENCES/science.jsonl" --collection science --limit 300
c3po refs import "$REFERENCES/sentiment.jsonl" --collection sentiment
c3po refs stats
echo "All 2,368 science questions: build/release/bin/c3po refs import $REFERENCES/science.jsonl --collection science"

heading "5/6 Three questions"
ask() {
  printf '\n\033[1m%s\033[0m\n' "$1"; shift
  c3po ask --explain "$@"
}
C3PO_OPTIONS=(--collection sentiment --references all --objective choices --k 24 --critical-layers 22-29
  --core-experts 0 --application shift --learning-rate 0.03 --steps 10 --validation-neighbors 0)
REVIEW=$'Review: the second coming of harry potter is a film far superior to its predecessor .\nSentiment:'
ask "Chat: How do plants make food? (the model as it is)" --chat --method none --max-tokens 60 "How do plants make food?"
ask "Science: What gas do plants need for photosynthesis? (with C3PO)" --collection science --method ngd \
  --stop $'\n' --max-tokens 14 $'Question: What gas do plants need for photosynthesis?\nAnswer:'
ask "A held-out review: the second coming of harry potter is a film far superior to its predecessor (without C3PO)" \
  --method none "$REVIEW" --choices " negative" " positive"
ask "The same review (with C3PO)" --method ngd "${C3PO_OPTIONS[@]}" "$REVIEW" --choices " negative" " positive"

heading "6/6 Sixty held-out reviews"
echo "none: the model as it is. ngd: with C3PO. knn: the vote of the same neighbors, no model at all. offset: the model as it is,"
echo "its two answers scaled and shifted by the server as 100 references tell. What C3PO has beyond that is said first."
rm -rf "$DATA_DIR/reviews"
c3po eval --task "$REFERENCES/sentiment_heldout.jsonl" --metric raw --limit 60 --methods none,offset,ngd,knn "${C3PO_OPTIONS[@]}" \
  --offset-references 100 --out "$DATA_DIR/reviews" --report "$DATA_DIR/reviews.html"
echo "Pictures: $DATA_DIR/reviews.html. The whole suite: deploy/evaluation/main_table.sh"

heading "Done"
if [ "$ONCE" = 1 ]; then
  trap - EXIT
  stop_server
  echo "The server has drained and stopped."
else
  disown "$SERVER_PID"
  cat <<END
The server goes on (process $SERVER_PID, log $DATA_DIR/server.log, metrics http://127.0.0.1:$METRICS_PORT/metrics).
  ask      build/release/bin/c3po --server $SERVER ask --collection science --explain \$'Question: ...\nAnswer:'
  chat     build/release/bin/c3po --server $SERVER chat
  import   build/release/bin/c3po --server $SERVER refs import FILE.jsonl --collection NAME
  stop     kill $SERVER_PID
END
fi
