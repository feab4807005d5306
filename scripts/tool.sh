#!/usr/bin/env bash
# Runs a development tool from its own module under tools/.
#
#   tool.sh MODULE COMMAND [ARG...]   run it, building the module's tools first if needed
#   tool.sh --cached MODULE...        exit 0 if the tools of every MODULE are built
#
# The binaries are kept outside the clone, by the digest of the module's go.mod
# and the Go version, so that a fresh clone finds them again.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

bin_of() {
	local digest
	digest=$(sha256sum "$root/tools/$1/go.mod" | cut -c1-12)
	echo "${XDG_CACHE_HOME:-$HOME/.cache}/dals-host/tools/$1-$digest-$(go env GOVERSION)"
}

if [ "${1-}" = --cached ]; then
	shift
	for module; do [ -d "$(bin_of "$module")" ] || exit 1; done
	exit 0
fi
if [ $# -lt 2 ]; then
	echo 'usage: tool.sh MODULE COMMAND [ARG...] | tool.sh --cached MODULE...' >&2
	exit 2
fi

module=$1 command=$2
shift 2
bin=$(bin_of "$module")
if [ ! -d "$bin" ]; then
	echo "tool.sh: building the tools of tools/$module, once; this may take minutes" >&2
	mkdir -p "$(dirname "$bin")"
	partial=$(mktemp -d "$bin.XXXXXX")
	trap 'rm -rf "$partial"' EXIT
	go -C "$root/tools/$module" build -trimpath -buildvcs=false -o "$partial/" tool >&2
	# A rename, so that a broken-off build is never taken for a finished one.
	# The loser of a race finds the winner's folder and uses that.
	mv -T "$partial" "$bin" 2>/dev/null || [ -d "$bin" ]
	rm -rf "$partial"
	trap - EXIT
fi
exec "$bin/$command" "$@"
