#!/usr/bin/env bash
# Attacks a c3pod of its own from outside and prints what it cost: see deploy/attack/attack.py.
#   attack.sh [OPTIONS of attack.py]     after a build in build/release; C3PO_PRESET=asan takes build/asan's
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=$(ls -d "${C3PO_CACHE_DIR:-$HOME/.cache/c3po}"/tools-*/bin/python | sort -V | tail -n 1)
exec "$PYTHON" deploy/attack/attack.py "build/${C3PO_PRESET:-release}/bin/c3pod" "$@"
