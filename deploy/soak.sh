#!/usr/bin/env bash
# Ten minutes of mixed load on a c3pod of its own: answers with and without optimization, scores, references added, searched and
# deleted, calls cancelled, answers read slowly, and every few seconds a client killed with SIGKILL. Ends with a verdict on what
# must be nil: growth of memory after the warm-up, what is still held when nobody asks any more, and statuses that nobody should
# get. Exit code 0 only if all of it is.
#   C3PO_SOAK_SECONDS          how long (default 600); the first fifth is warm-up, C3PO_SOAK_WARMUP_SECONDS sets it
#   C3PO_SOAK_BIN              folder of c3pod and c3po (default build/release/bin)
#   C3PO_SOAK_MODEL            model folder (default: the tiny model of the tests)
#   C3PO_SOAK_GROWTH_MB        memory that may come and go (default 16): the allocator's own spread, not a leak
#   C3PO_SOAK_REPORT           also write the figures to this file, as JSON
#   C3PO_SOAK_SEED             of the load and of who is killed when (default 1)
set -euo pipefail
cd "$(dirname "$0")/.."
exec python3 deploy/load/soak.py
