#!/usr/bin/env bash
# Attacks a c3pod of its own from outside and prints what it cost: see deploy/attack/attack.py.
#   attack.sh [OPTIONS of attack.py]     after a build in build/release; C3PO_PRESET=asan takes build/asan's
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "${C3PO_PRESET:-release}" != release ]; then  # As in deploy/sanitize.sh.
  export C3PO_TEST_SLOWDOWN=10
  export ASAN_OPTIONS=${ASAN_OPTIONS-detect_stack_use_after_return=1:strict_string_checks=1:quarantine_size_mb=32}
  export LSAN_OPTIONS=${LSAN_OPTIONS-suppressions=$PWD/tests/sanitize/lsan.supp:print_suppressions=0}
  export UBSAN_OPTIONS=${UBSAN_OPTIONS-print_stacktrace=1:halt_on_error=1}
fi
PYTHON=$(ls -d "${C3PO_CACHE_DIR:-$HOME/.cache/c3po}"/tools-*/bin/python | sort -V | tail -n 1)
exec "$PYTHON" deploy/attack/attack.py "build/${C3PO_PRESET:-release}/bin/c3pod" "$@"
