#!/usr/bin/env bash
# Runs every fuzz target of the module for the given time, one after the other.
set -euo pipefail
cd "$(dirname "$0")/.."
go=${GO:-go} time=${1:-10s}

targets=$("$go" test -list '^Fuzz' ./... | awk '
	/^Fuzz/      { name[n++] = $1 }
	$1 == "ok"   { for (i = 0; i < n; i++) print $2, name[i]; n = 0 }')
[ -n "$targets" ] || { echo 'fuzz: no fuzz target found' >&2; exit 1; }
while read -r package name; do
	echo "== $package $name"
	"$go" test -run '^$' -fuzz "^$name\$" -fuzztime "$time" "$package" </dev/null
done <<<"$targets"
