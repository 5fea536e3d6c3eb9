#!/usr/bin/env bash
# Everything that a machine with a GPU is asked, prepared on one without, where time is cheap.
#   tests/gpu/check.sh pack FOLDER    here: collects the programs of BIN_DIR (default build/release/bin) and their libraries
#                                     into FOLDER, less than 64 MiB, none of it gRPC's or libtorch's
#   check.sh --plan                   anywhere: the steps in their order, with the seconds that each may take
#   FOLDER/check.sh [STEP...]         there, with nothing installed but the driver: runs the steps (default all), under four minutes
# Build before packing: cmake --build --preset release --target gpu_check
# Exit code there: 0 where every step passed, 1 where one failed, 3 without a GPU. Output is also in FOLDER/report/STEP.log,
# or in REPORT/STEP.log where that variable names a folder. SECONDS_ALL: that all steps may take, 235.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
PROGRAMS=(gpu_probe gpu_runtime_test gpu_primitives_test gpu_products_test gpu_attention_test gpu_index_test gpu_marks)
MIB_MAX=64
LEFT_OUT=77 NO_GPU=3   # Exit codes of a step that this machine cannot take, and of all without a GPU.
SECONDS_ALL=${SECONDS_ALL:-235}

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
tests_of() { "$HERE/bin/$1" --gtest_brief=1 --gtest_filter="${2:-*}"; }

FRAGMENTS='*MatricesLieInRegistersAsInPtx*:*ShufflesTakeFromTheLaneTheyName*'
step_fragments() { tests_of gpu_primitives_test "$FRAGMENTS"; }
step_probe() { "$HERE/bin/gpu_probe" && "$HERE/bin/gpu_probe" --wait spin | grep -E 'round trip|launch and wait'; }
step_runtime() { tests_of gpu_runtime_test; }
step_primitives() { tests_of gpu_primitives_test "*-$FRAGMENTS"; }
step_products() { tests_of gpu_products_test; }
step_attention() { tests_of gpu_attention_test; }
step_index() { tests_of gpu_index_test; }
step_marks() { "$HERE/bin/gpu_marks" --graph-seconds 20; }

# The machine's own: PyPI's compute-sanitizer lacks the program that starts what it watches (13.0.85).
sanitizer() {
  local found
  found=$(PATH=$PATH:/usr/local/cuda/bin command -v compute-sanitizer) || { echo "no compute-sanitizer on this machine"; return $LEFT_OUT; }
  "$found" --error-exitcode 9 "$@"
}
# Whole passes and searches on a small shape run every kernel that the server launches; the tests run those beside.
step_memcheck() {
  sanitizer --tool memcheck "$HERE/bin/gpu_marks" --tiny || return
  sanitizer --tool memcheck --leak-check full "$HERE/bin/gpu_runtime_test" --gtest_brief=1 \
    --gtest_filter='-*CannotBeAllocated*:*CannotHold*' || return  # These make CUDA's own errors, which it would report.
  sanitizer --tool memcheck "$HERE/bin/gpu_products_test" --gtest_brief=1 \
    --gtest_filter='GatherRows.*:Remembered.*:SelectAll.*:RowSums.*:Embedding.*:ExpertLists.*' || return
  sanitizer --tool memcheck "$HERE/bin/gpu_attention_test" --gtest_brief=1 \
    --gtest_filter='CudaTokenLogits.*:CudaBlockCopies.*:CudaReadout.SaysWhatIsNotFinite'
}
step_racecheck() { sanitizer --tool racecheck "$HERE/bin/gpu_marks" --tiny; }

STEPS=(fragments probe runtime primitives products attention index marks memcheck racecheck)
declare -A SECONDS_MAX=([fragments]=15 [probe]=45 [runtime]=30 [primitives]=20 [products]=60 [attention]=45 [index]=45 [marks]=120
                        [memcheck]=90 [racecheck]=60)
declare -A WHAT=(
  [fragments]='layouts of fragments: mma, movmatrix, ldmatrix, shuffles, against the plain loops that the host model is held to'
  [probe]='read and copy bandwidth, a node of a graph, a launch behind a launch, pinned round trip, waits'
  [runtime]='the contract of the runtime seam, as the host model keeps it'
  [primitives]='all other primitives of kernels: votes, cp.async, atomics, arithmetic, rounding'
  [products]='oracles of products, experts there and back, many rows, remembered experts, gathered rows, row sums, embedding'
  [attention]='oracles of attention, tree attention, router there and back, readout'
  [index]='oracles of scan, float16 scan, beam search, scatter and narrow; indexes and pathways through changes'
  [marks]='table of marks: decode, prefill, descent, products of 16, 8 and 4 bits, index, with floors of the bandwidth measured in that run'
  [memcheck]='compute-sanitizer memcheck on small shapes, if the machine has it'
  [racecheck]='compute-sanitizer racecheck on small shapes, if the machine has it'
)

plan() {
  local step
  for step in "${STEPS[@]}"; do printf '%-11s %4d s  %s\n' "$step" "${SECONDS_MAX[$step]}" "${WHAT[$step]}"; done
  echo "all         $(printf '%4d' "$SECONDS_ALL") s  steps that come to no time are failures"
}

run() {
  local report=${REPORT:-$HERE/report} step code failed=0 start begin=$SECONDS left
  mkdir -p "$report"
  "$HERE/bin/gpu_probe" --present || exit $NO_GPU
  for step in "$@"; do
    [ -n "${SECONDS_MAX[$step]-}" ] || die "step $step is not one of ${STEPS[*]}"
  done
  for step in "$@"; do
    start=$SECONDS code=0 left=$((SECONDS_ALL - (SECONDS - begin)))
    if [ "$left" -le 0 ]; then
      echo "== $step: FAILED: no time was left of $SECONDS_ALL s"
      failed=1
      continue
    fi
    [ "$left" -le "${SECONDS_MAX[$step]}" ] || left=${SECONDS_MAX[$step]}
    timeout -k 2 "$left" "$HERE/check.sh" --step "$step" >"$report/$step.log" 2>&1 || code=$?
    sed "s/^/$step: /" "$report/$step.log"
    # There is a GPU, so that a test, or a whole program, which finds none has found a fault.
    if [ "$code" = 0 ] && grep -qE '  SKIPPED |^device cuda: ' "$report/$step.log"; then code="skipped tests"; fi
    case $code in
      0) echo "== $step: passed in $((SECONDS - start)) s" ;;
      "$LEFT_OUT") echo "== $step: left out" ;;
      124 | 137) echo "== $step: FAILED: not done in $left s"; failed=1 ;;
      *) echo "== $step: FAILED with $code"; failed=1 ;;
    esac
  done
  exit "$failed"
}

case ${1-} in
  pack) [ $# = 2 ] || die "usage: check.sh pack FOLDER"; pack "$2" ;;
  --plan) plan ;;
  --step) "step_$2" ;;
  *)
    if [ ! -d "$HERE/bin" ] || [[ ${1-} == -* ]]; then
      sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
      exit 2
    fi
    if [ $# = 0 ]; then set -- "${STEPS[@]}"; fi
    run "$@"
    ;;
esac
