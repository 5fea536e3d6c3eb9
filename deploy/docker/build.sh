#!/usr/bin/env bash
# Compiles c3pod and c3po, without tests, into build/release/bin. Needs deploy/install_deps.sh --build-only.
# Arguments go to ninja.
set -euo pipefail
cd "$(dirname "$0")/../.."
cmake --preset release -DC3PO_BUILD_TESTS=OFF
cmake --build --preset release --target c3pod c3po -- "$@"
