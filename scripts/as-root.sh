#!/usr/bin/env bash
# Runs a command as root by sudo where that needs no password, else says what
# to do: the tests start containers and processes under other uids, and a run
# that left those out would prove nothing.
set -euo pipefail
if sudo -n true 2>/dev/null; then
	exec sudo -n -H env "PATH=$PATH" "GOPROXY=$(go env GOPROXY)" "$@"
fi
echo "this needs root: containers, and processes under uids of their own" >&2
echo "hint: run: sudo -H env \"PATH=\$PATH\" $*" >&2
exit 1
