#!/usr/bin/env bash
# Installs what is missing, builds everything and runs every test; ends with ctest's own summary. Arguments go to ctest.
#   C3PO_PRESET   release (default), debug, asan, tsan, or rounded: `--arithmetic auto` is bfloat16 on every processor, by plain
#                 loops where it has neither AVX-512 BF16 nor AMX
set -euo pipefail
cd "$(dirname "$0")/.."
PRESET=${C3PO_PRESET:-release}
deploy/install_deps.sh
cmake --preset "$PRESET"
cmake --build --preset "$PRESET"
ctest --preset "$PRESET" --timeout 900 "$@"
