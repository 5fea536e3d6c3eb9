#!/usr/bin/env bash
# Compiles c3pod and c3po, without tests, into build/release/bin. Needs deploy/install_deps.sh --build-only.
# usage: build.sh [cuda] [ARGUMENTS OF NINJA]
#   cuda   also libc3po_cuda.so, which --device cuda opens; needs deploy/install_deps.sh --build-only --cuda
set -euo pipefail
cd "$(dirname "$0")/../.."
CUDA=OFF TARGETS=(c3pod c3po)
if [ "${1-}" = cuda ]; then CUDA=ON; TARGETS+=(c3po_cuda); shift; fi
cmake --preset release -DC3PO_BUILD_TESTS=OFF -DC3PO_CUDA=$CUDA
cmake --build --preset release --target "${TARGETS[@]}" -- "$@"
