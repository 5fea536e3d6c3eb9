#!/usr/bin/env bash
# Exit code 0 when c3pod's HTTP door answers 200, else 1. Needs nothing but bash.
# usage: healthcheck.sh [PATH (default /readyz)] [PORT (default C3PO_METRICS_PORT or 9464)]
set -euo pipefail
WHERE=${1:-/readyz} PORT=${2:-${C3PO_METRICS_PORT:-9464}}
exec 3<>"/dev/tcp/127.0.0.1/$PORT" || exit 1
printf 'GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' "$WHERE" >&3
read -r -t 5 _ status _ <&3 || exit 1
[ "$status" = 200 ] || exit 1
