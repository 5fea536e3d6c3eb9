#!/usr/bin/env bash
# Adds the samples of a JSONL file to a reference store that no server has open, and shows the result at once or not at
# all: a copy of the store is filled by a c3pod of its own on loopback, then renamed over the store.
# Configuration (C3PO_MODEL, C3PO_EMBEDDER, ...) comes from the environment, as c3pod reads it.
# usage: import_references.sh STORE COLLECTION FILE.jsonl [flags of c3po refs import]
set -euo pipefail
STORE=$1 COLLECTION=$2 SAMPLES=$3
shift 3
PATH=$(cd "$(dirname "$0")" && pwd):$PATH
PORT=${C3PO_IMPORT_PORT:-50051}
NEXT=$STORE.next

remove_next() { rm -rf "$NEXT" "$NEXT-wal" "$NEXT-shm" "$NEXT.lock" "$NEXT.graphs"; }

remove_next
if [ -e "$STORE" ]; then cp "$STORE" "$NEXT"; fi
c3pod --store "$NEXT" --listen "127.0.0.1:$PORT" --metrics-port -1 &
SERVER=$!
trap 'kill -TERM "$SERVER" 2>/dev/null || true; wait "$SERVER" || true; remove_next' EXIT
until c3po --server "127.0.0.1:$PORT" info --wait 2 >/dev/null 2>&1; do
  kill -0 "$SERVER" 2>/dev/null || { echo "import_references.sh: c3pod did not start" >&2; exit 1; }
done
c3po --server "127.0.0.1:$PORT" refs import "$SAMPLES" --collection "$COLLECTION" "$@"
kill -TERM "$SERVER"
wait "$SERVER"
trap - EXIT
# c3pod has closed the store: its log is folded into the file.
[ ! -s "$NEXT-wal" ] || { echo "import_references.sh: $NEXT-wal is not empty" >&2; exit 1; }
sync "$NEXT"
mv "$NEXT" "$STORE"
remove_next
