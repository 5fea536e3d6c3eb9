#!/usr/bin/env bash
# Everything that a machine with a GPU is asked, prepared on one without, where time is cheap.
#   tests/gpu/check.sh pack FOLDER    here: collects the programs of BIN_DIR (default build/release/bin) and their libraries
#                                     into FOLDER, less than 64 MiB, none of it gRPC's
#   FOLDER/check.sh [STEP...]         there, with nothing installed but the driver: runs the steps (default all), under four minutes
# Build before packing: cmake --build --preset release --target c3po_cuda gpu_runtime_test gpu_primitives_test gpu_probe
# Exit code there: 0 where every step passed, 1 where one failed, 3 without a GPU. Output is also in FOLDER/report/STEP.log,
# or in REPORT/STEP.log where that variable names a folder.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
PROGRAMS=(gpu_runtime_test gpu_primitives_test gpu_probe)
MIB_MAX=64
LEFT_OUT=77 NO_GPU=3   # Exit codes of a step that this machine cannot take, and of all without a GPU.

die() { echo "check.sh: $*" >&2; exit 1; }

pack() {
  local folder=$1 bin_dir=${BIN_DIR:-$HERE/../../build/release/bin} program library size
  command -v patchelf >/dev/null || die "patchelf is missing: deploy/install_deps.sh"
  [ ! -e "$folder" ] || [ -f "$folder/check.sh" ] || die "$folder is there and was not packed by this script"
  rm -rf "$folder" && mkdir -p "$folder/bin" "$folder/lib"
  for program in "${PROGRAMS[@]}" libc3po_cuda.so; do
    [ -f "$bin_dir/$program" ] || die "$bin_dir/$program is not there: build target ${program/libc3po_cuda.so/c3po_cuda}"
    strip -o "$folder/bin/$program" "$bin_dir/$program"
  done
  for program in "${PROGRAMS[@]}"; do
    # glibc is the machine's own; the driver's libcuda is opened by name.
    ldd "$bin_dir/$program" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | while read -r library; do
      [[ $(basename "$library") =~ ^(ld-linux.*|lib(c|m|dl|rt|pthread|util|resolv|mvec))\.so ]] || cp -Lu "$library" "$folder/lib/"
    done
    # RPATH, not RUNPATH: it also holds for the libraries that libraries need.
    patchelf --force-rpath --set-rpath '$ORIGIN/../lib' "$folder/bin/$program"
  done
  if ls "$folder/lib" | grep -E 'grpc|torch' >&2; then die "a program of the check is linked with these"; fi
  cp "$HERE/check.sh" "$folder/"
  size=$(du -sm "$folder" | cut -f1)
  [ "$size" -lt $MIB_MAX ] || die "$folder has $size MiB, and less than $MIB_MAX are allowed"
  echo "$folder: $size MiB"
}

# --- On the machine with the GPU. A step is a function; its output goes to its log. ---
step_probe() { "$HERE/bin/gpu_probe" && "$HERE/bin/gpu_probe" --wait spin | grep -E 'round trip|launch and wait'; }
step_runtime() { "$HERE/bin/gpu_runtime_test" --gtest_brief=1; }
# The layouts of fragments first of all: every kernel takes them for what PTX says.
step_primitives() { "$HERE/bin/gpu_primitives_test" --gtest_brief=1; }
# The machine's own: PyPI's compute-sanitizer lacks the program that starts what it watches (13.0.85).
step_sanitizer() {
  local sanitizer
  sanitizer=$(PATH=$PATH:/usr/local/cuda/bin command -v compute-sanitizer) || { echo "no compute-sanitizer on this machine"; return $LEFT_OUT; }
  "$sanitizer" --tool memcheck --leak-check full --error-exitcode 9 "$HERE/bin/gpu_runtime_test" --gtest_brief=1 \
    --gtest_filter='-*CannotBeAllocated*:*CannotHold*'   # These make CUDA's own errors, which it would report.
}
STEPS=(probe runtime primitives sanitizer)
declare -A SECONDS_MAX=([probe]=60 [runtime]=60 [primitives]=30 [sanitizer]=100)

run() {
  local report=${REPORT:-$HERE/report} step code failed=0 start
  mkdir -p "$report"
  "$HERE/bin/gpu_probe" --present || exit $NO_GPU
  for step in "$@"; do
    [ -n "${SECONDS_MAX[$step]-}" ] || die "step $step is not one of ${STEPS[*]}"
    start=$SECONDS code=0
    timeout "${SECONDS_MAX[$step]}" "$HERE/check.sh" --step "$step" >"$report/$step.log" 2>&1 || code=$?
    sed "s/^/$step: /" "$report/$step.log"
    # There is a GPU, so that a test which finds none has found a fault.
    if [ "$code" = 0 ] && grep -q '  SKIPPED ' "$report/$step.log"; then code="skipped tests"; fi
    case $code in
      0) echo "== $step: passed in $((SECONDS - start)) s" ;;
      "$LEFT_OUT") echo "== $step: left out" ;;
      *) echo "== $step: FAILED with $code"; failed=1 ;;
    esac
  done
  exit "$failed"
}

case ${1-} in
  pack) [ $# = 2 ] || die "usage: check.sh pack FOLDER"; pack "$2" ;;
  --step) "step_$2" ;;
  *)
    [ -d "$HERE/bin" ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
    if [ $# = 0 ]; then set -- "${STEPS[@]}"; fi
    run "$@"
    ;;
esac
