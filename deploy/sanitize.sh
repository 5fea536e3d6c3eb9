#!/usr/bin/env bash
# Builds with a sanitizer and runs tests.
# usage: deploy/sanitize.sh address|thread [CTEST_REGEX [TARGET...]]
#   address   AddressSanitizer and UndefinedBehaviorSanitizer, in build/asan; thread: ThreadSanitizer, in build/tsan
#   CTEST_REGEX   which tests run (ctest -R); default: all but the benches, deploy/ and lint
#   TARGET        what is built for them; default: everything
# The header of the weights, changed in 10,000 places:
#   C3PO_HEADER_MUTATIONS=10000 deploy/sanitize.sh address HeaderMutation server_weights_test
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1-} in
  address) PRESET=asan ;;
  thread) PRESET=tsan ;;
  *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
FILTER=${2-}
TARGETS=("${@:3}")
cmake --preset "$PRESET" >/dev/null
cmake --build --preset "$PRESET" ${TARGETS[@]+--target "${TARGETS[@]}"}
# Leaks: libtorch and gRPC keep what they made until the process ends; what they still point to is not counted.
export ASAN_OPTIONS=${ASAN_OPTIONS-detect_stack_use_after_return=1:strict_string_checks=1}
export LSAN_OPTIONS=${LSAN_OPTIONS-suppressions=$PWD/tests/sanitize/lsan.supp:print_suppressions=0}
export UBSAN_OPTIONS=${UBSAN_OPTIONS-print_stacktrace=1}
export TSAN_OPTIONS=${TSAN_OPTIONS-second_deadlock_stack=1:suppressions=$PWD/tests/sanitize/tsan.supp}
export C3PO_TEST_SLOWDOWN=10  # What bounds of time in the tests are multiplied by.
WHICH=(-LE "bench|deploy|lint")
if [ -n "$FILTER" ]; then WHICH=(-R "$FILTER"); fi
ctest --preset "$PRESET" --no-tests=error -j "$(nproc)" "${WHICH[@]}"
