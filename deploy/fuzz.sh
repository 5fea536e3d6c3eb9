#!/usr/bin/env bash
# Builds the fuzz targets with libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer (installs clang where it is
# missing) and runs them, each for a time, from its seeds and what earlier runs found.
# usage: deploy/fuzz.sh [SECONDS [TARGET...]]     (60 seconds each; all targets)
# An input that fails is left in build/fuzz/crashes/TARGET-...; build/fuzz/bin/TARGET_fuzz FILE runs it again. Exit code
# 1 if there was one.
set -euo pipefail
cd "$(dirname "$0")/.."
LIMIT=${1:-60}
shift || true
TARGETS=("$@")
[[ $LIMIT =~ ^[0-9]+$ ]] || { echo "usage: deploy/fuzz.sh [SECONDS [TARGET...]]" >&2; exit 2; }

if ! command -v clang++-14 >/dev/null || ! ls /usr/lib/llvm-14/lib/clang/14*/lib/linux/libclang_rt.fuzzer* >/dev/null 2>&1; then
  if [ "$(id -u)" = 0 ]; then ROOT=(); else ROOT=(sudo); fi
  "${ROOT[@]}" apt-get update -qq
  "${ROOT[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends clang-14 \
    libclang-rt-14-dev llvm-14 >&2   # llvm-14: names of functions in what the sanitizers print.
fi
cmake --preset fuzz >/dev/null
BUILD=build/fuzz
if [ ${#TARGETS[@]} = 0 ]; then
  for list in "$BUILD"/seeds/*; do TARGETS+=("$(basename "$list")"); done
fi
cmake --build --preset fuzz --target "${TARGETS[@]/%/_fuzz}"

# Seeds as libFuzzer takes them: one folder, one file each; the lines of a .jsonl are seeds of their own.
collect_seeds() {
  local path file
  while read -r path; do
    find "$path" -type f | while read -r file; do
      case $file in
        *.jsonl) split -l 1 "$file" "$2/$(basename "$file")-" ;;
        *) cp "$file" "$2/$(echo "$file" | sha256sum | cut -c1-16)" ;;
      esac
    done
  done <"$1"
}

mkdir -p "$BUILD/crashes"
FAILED=0
for target in "${TARGETS[@]}"; do
  corpus=$BUILD/corpus/$target
  mkdir -p "$corpus"
  collect_seeds "$BUILD/seeds/$target" "$corpus"
  echo "== $target: $LIMIT s" >&2
  # malloc_limit_mb: no input may make a single allocation that large.
  UBSAN_OPTIONS=print_stacktrace=1 "$BUILD/bin/${target}_fuzz" -max_total_time="$LIMIT" -timeout=20 -rss_limit_mb=2048 \
    -malloc_limit_mb=512 -print_final_stats=1 -verbosity=0 -artifact_prefix="$BUILD/crashes/$target-" "$corpus" ||
    FAILED=1
done
exit $FAILED
