#!/usr/bin/env bash
# Measures what docs/PERFORMANCE.md reports. Figures of one run belong together:
# compare ratios, not figures of two runs. Needs root and containerd.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" -eq 0 ] || exec scripts/as-root.sh "$0"
scripts/setup-containerd.sh podman=podman docker=docker.io dockerd=docker.io
PATH=$PATH:/usr/sbin:/sbin

echo '== forging: complete forges against ctr run -d of the same containers'
go test -run '^$' -bench '^BenchmarkForge$' -benchtime "${ROUNDS:-5}x" -timeout 30m ./internal/e2e
echo '== forging: complete forges against podman, docker, ctr and crun, each as it comes'
go test -run '^$' -bench '^BenchmarkPeers$' -benchtime "${ROUNDS:-3}x" -timeout 60m ./internal/e2e
echo '== the cage: what each part of it costs under crun'
go test -run '^$' -bench '^BenchmarkCage$' -benchtime "${ROUNDS:-3}x" -timeout 30m ./internal/e2e
echo '== forging under the process launcher: dry runs and complete forges, 1 and 8 callers'
go test -run '^$' -bench '^BenchmarkForgeRate$' -benchtime "${ROUNDS:-5}x" -timeout 30m ./internal/e2e
echo '== cold start: a killed host is replaced, workers registered and a fifth of them running'
go test -run '^$' -bench '^BenchmarkColdStart$' -benchtime "${ROUNDS:-5}x" -timeout 30m ./internal/e2e
echo '== idle workers: memory and CPU of each (IDLE=10m watches them for ten minutes)'
go test -run '^$' -bench '^BenchmarkIdle$' -benchtime 1x -timeout 60m ./internal/e2e
echo '== a thousand workers forged and retired: what stays, and the time that retiring takes (LEAK_ROUNDS=100 for fewer)'
go test -run '^$' -bench '^BenchmarkForgeAndRetire$' -benchtime 1x -timeout 60m ./host
echo '== the registry: committed updates against plain SQLite inserts'
go test -run '^$' -bench . -skip '^BenchmarkAllocation$' ./host/registry
go test -run '^$' -bench '^BenchmarkAllocation$' -benchtime 9x ./host/registry
echo '== the record: publishing entries as a Merkle log'
go test -run '^$' -bench . ./host/record
