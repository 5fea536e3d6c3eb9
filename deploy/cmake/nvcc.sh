#!/usr/bin/env bash
# Runs an nvcc command with -Xptxas -v. What ptxas says of registers and spills goes into REPORT, all else to standard error.
# usage: nvcc.sh REPORT COMMAND...
set -euo pipefail
report=$1; shift
code=0
"$@" 2>"$report.all" || code=$?
of_ptxas='^ptxas info|^ +[0-9]+ bytes stack frame'
grep -E "$of_ptxas" "$report.all" >"$report" || true
grep -vE "$of_ptxas" "$report.all" >&2 || true
rm -f "$report.all"
exit "$code"
