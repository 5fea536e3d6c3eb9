#!/usr/bin/env bash
# Collects c3pod, c3po and every shared library they need into ROOT/opt/c3po, so that they run on a bare Debian 12: only
# glibc is left to it. With `cuda`, also what c3pod opens for --device cuda (3 GB): libc3po_cuda.so and libtorch's CUDA half,
# all but the driver's libcuda.
# Beside them it writes opt/c3po/sbom.cdx.json (sbom.py); BASE_STATUS names /var/lib/dpkg/status of the image that ROOT is for.
# usage: [BASE_STATUS=FILE] stage.sh BIN_DIR ROOT [cpu|cuda]
set -euo pipefail
BIN_DIR=$1 ROOT=$2 DEVICE=${3:-cpu}
HERE=$(dirname "$0")
LIB=$ROOT/opt/c3po/lib
BIN=$ROOT/opt/c3po/bin
SOURCES=$(mktemp)
trap 'rm -f "$SOURCES"' EXIT
GLIBC='^(ld-linux.*|lib(c|m|dl|pthread|rt|util|resolv|nsl|mvec|anl|BrokenLocale))\.so'

die() { echo "stage.sh: $*" >&2; exit 1; }

# The libraries that FILE loads, as absolute paths, glibc left out.
libraries_of() {
  local listing
  listing=$(ldd "$1")
  if grep 'not found' <<<"$listing" | grep -v '^[[:space:]]*libcuda\.so' >&2; then die "$1: libraries are missing"; fi
  awk '$2 == "=>" && $3 ~ /^\// { print $3 }' <<<"$listing" | while read -r path; do
    [[ $(basename "$path") =~ $GLIBC ]] || echo "$path"
  done
}

# Libraries are not changed, so a hard link does where the file system allows it.
take() {
  local target
  target=$LIB/$(basename "$1")
  [ -e "$target" ] || printf '%s\t%s\n' "$(basename "$1")" "$1" >>"$SOURCES"
  [ -e "$target" ] || ln "$(readlink -f "$1")" "$target" 2>/dev/null || cp -L "$1" "$target"
}

case $DEVICE in cpu | cuda) ;; *) die "device $DEVICE is not cpu or cuda" ;; esac
if [ "$DEVICE" = cuda ] && [ ! -f "$BIN_DIR/libc3po_cuda.so" ]; then
  die "$BIN_DIR/libc3po_cuda.so is not there: run deploy/docker/build.sh cuda"
fi
mkdir -p "$LIB" "$BIN"
for program in c3pod c3po; do
  [ -x "$BIN_DIR/$program" ] || die "$BIN_DIR/$program is not there: run deploy/docker/build.sh"
  libraries_of "$BIN_DIR/$program" | while read -r path; do take "$path"; done
  cp "$BIN_DIR/$program" "$BIN/$program"
  # RPATH, not RUNPATH: it also holds for the libraries that libraries need.
  patchelf --force-rpath --set-rpath '$ORIGIN/../lib' "$BIN/$program"
done
cp "$HERE/healthcheck.sh" "$HERE/import_references.sh" "$BIN/"

# install_deps.sh leaves the archive's name, version and digest beside the library that it built.
XGRAMMAR=$(sed -n 's/^XGRAMMAR_LIBRARY:[A-Z]*=//p' "$BIN_DIR/../CMakeCache.txt")
STATIC=(--archive "$(dirname "$XGRAMMAR")/../requirements.txt")
if [ "$DEVICE" = cuda ]; then
  cp "$BIN_DIR/libc3po_cuda.so" "$LIB/"
  STATIC+=(--compiled-in "$(sed -n 's/^C3PO_CUDART:[A-Z]*=//p' "$BIN_DIR/../CMakeCache.txt")")
  TORCH=$(dirname "$(ldd "$BIN_DIR/c3pod" | awk '$1 == "libtorch_cpu.so" { print $3 }')")
  # Some of NVIDIA's libraries are opened by name only, so ldd does not see them: all are taken.
  for path in "$TORCH"/libtorch_cuda*.so "$TORCH"/libc10_cuda.so "$TORCH"/libcaffe2_nvrtc.so \
    "$TORCH"/../../nvidia/*/lib/*.so*; do
    if [ -f "$path" ]; then take "$path"; fi
  done
  libraries_of "$TORCH/libtorch_cuda.so" | while read -r path; do take "$path"; done
fi
python3 "$HERE/sbom.py" --stage "$ROOT" --sources "$SOURCES" ${STATIC[@]+"${STATIC[@]}"} --output "$ROOT/opt/c3po/sbom.cdx.json" \
  ${BASE_STATUS:+--base-status "$BASE_STATUS"}
du -shL "$ROOT/opt/c3po" >&2
