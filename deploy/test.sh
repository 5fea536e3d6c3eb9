#!/usr/bin/env bash
# Installs what is missing, builds everything and runs every test; ends with ctest's own summary. Arguments go to ctest.
#   C3PO_PRESET   release (default), debug, asan or tsan
set -euo pipefail
cd "$(dirname "$0")/.."
PRESET=${C3PO_PRESET:-release}
deploy/install_deps.sh
cmake --preset "$PRESET"
cmake --build --preset "$PRESET"
ctest --preset "$PRESET" --timeout 900 "$@"
