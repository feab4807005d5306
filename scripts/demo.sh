#!/usr/bin/env bash
# The whole main job on real input, as an operator would type it. What follows a
# $ is what is run, quoted for a shell; the demo ends with a non-zero exit when
# anything differs from what it should be.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/bin:$PATH:/usr/sbin:/sbin

data=$(mktemp -d "${TMPDIR:-/tmp}/dals-demo.XXXXXX")
log=$data.log
export DALS_DATA_DIR=$data
unset DALS_HOST DALS_KEY # the demo speaks to its own host only
host=

fail() {
	echo "demo: $1" >&2
	[ -s "$log" ] && { echo 'demo: the host said:' >&2; tail -n 20 "$log" >&2; }
	exit 1
}
clean() {
	local status=$?
	if [ -n "$host" ]; then
		# Workers outlive a host that died: only a host can end them.
		kill -0 "$host" 2>/dev/null || dals-host serve --launcher "$launcher" >>"$log" 2>&1 &
		for _ in $(seq 100); do dals-host types >/dev/null 2>&1 && break; sleep 0.1; done
		dals-host down --timeout 2s >/dev/null 2>&1 || {
			echo "demo: workers may be left; their data folder is $data" >&2
			return
		}
	fi
	[ $status -ne 0 ] || rm -f "$log"
	rm -rf "$data" "$data.out" "$data.ready"
}
trap clean EXIT

title() { printf '\n\033[1m%s\033[0m\n' "$*" | if [ -t 1 ]; then cat; else sed 's/\x1b\[[0-9]*m//g'; fi; }
# quoted prints words as a shell would have to be given them.
quoted() {
	local word words=()
	for word; do [[ $word =~ ^[A-Za-z0-9_./=:@-]+$ ]] && words+=("$word") || words+=("${word@Q}"); done
	echo "${words[*]}"
}
# show runs a command, printing it and what it says; the demo fails if it fails.
show() {
	echo "\$ $(quoted "$@")"
	"$@" >"$data.out" 2>&1 || { cat "$data.out"; fail "that should have worked"; }
	sed 's/^/  /' "$data.out"
}
# refused runs a command that must be refused with the given code.
refused() {
	local code=$1
	shift
	echo "\$ $(quoted "$@")"
	if "$@" >"$data.out" 2>&1; then cat "$data.out"; fail "that should have been refused"; fi
	sed 's/^/  /' "$data.out"
	grep -q "$code" "$data.out" || fail "that should have been refused as $code"
}
# field prints a field of the JSON object on standard input.
field() { sed -n "s/^ *\"$1\": *\"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}\$/\1/p" | head -n 1; }
# processes_of lists the processes that carry a serial in their arguments or
# cgroups.
processes_of() { { grep -ls "$1" /proc/[0-9]*/cmdline /proc/[0-9]*/cgroup || true; } | cut -d/ -f3 | sort -u | { grep -vx "$$" || true; } | tr '\n' ' '; }
serve() {
	: >"$data.ready"
	dals-host serve --launcher "$launcher" >>"$data.ready" 2>>"$log" &
	host=$!
	for _ in $(seq 300); do
		grep -q '^ready' "$data.ready" && break
		kill -0 "$host" 2>/dev/null || fail 'the host ended'
		sleep 0.1
	done
	sed 's/^/  /' "$data.ready"
	name=$(sed -n 's/^ready host=\([0-9a-f]*\).*/\1/p' "$data.ready")
	rm -f "$data.ready"
}

launcher=process
if [ "$(id -u)" -eq 0 ] && scripts/setup-containerd.sh; then launcher=containerd; fi
if [ $launcher = containerd ]; then
	echo 'Workers run in containers of a private containerd.'
else
	echo 'Workers run as plain processes, without isolation: containers need root and containerd.'
fi

title 'A host on an empty data folder'
echo "\$ dals-host serve --launcher $launcher &"
serve
show dals-host types

title 'Worker types arrive while it runs'
show cp bin/plugins/dals-worker-template bin/plugins/dals-worker-ledger "$data/plugins/"
for _ in $(seq 40); do
	[ "$(dals-host types --json 2>/dev/null | grep -c '"family"')" -eq 2 ] && break
	sleep 0.1
done
show dals-host types
[ "$(dals-host types --json 2>/dev/null | grep -c '"family"')" -eq 2 ] || fail 'the types were not registered in time'

title 'Forging: first the plan, then the worker'
show dals-host forge --type template --name nora --class-code A1 --dry-run
show dals-host forge --type template --name nora --class-code A1
show dals-host forge --type ledger --name leo --class-code 300.100.000 --dry-run
show dals-host forge --type ledger --name leo --class-code 300.100.000
show dals-host workers
port=$(dals-host worker nora --json | field port)

title 'Signed envelopes, signed results'
show dals-host send nora template.echo '{"message": "hello"}'
show dals-host send nora template.info

title "Every line of go.sum into the ledger worker's own Merkle log, and the proof of one"
lines=$(wc -l <go.sum)
split -l 64 go.sum "$data/part."
for part in "$data"/part.*; do
	sed 's/.*/"&"/' "$part" | paste -sd, | sed 's/.*/{"records": [&]}/' >"$data/records.json"
	dals-host send leo ledger.append_many "@$data/records.json" --json >"$data.out" || { cat "$data.out"; fail 'append failed'; }
done
echo "  $lines lines appended in $(find "$data" -name 'part.*' | wc -l) envelopes"
show dals-host send leo ledger.prove '{"index": 7}'
grep -qF "$(sed -n 8p go.sum)" "$data.out" || fail 'the proof is not of line 8 of go.sum'
show dals-host send leo ledger.verify
grep -q "\"size\": $lines,\$" "$data.out" || fail "the ledger should hold $lines records"

title 'What must be refused: a tampered envelope, a replay, a stranger'
dals-host send nora template.echo '{"message": "pay 10"}' --sign-only "$data/tampered" >/dev/null
sed -i 's/pay 10/pay 99/' "$data/tampered"
refused bad_proof dals-host send --envelope "$data/tampered"
dals-host send nora template.echo '{"message": "once"}' --sign-only "$data/once" >/dev/null
show dals-host send --envelope "$data/once"
refused replayed dals-host send --envelope "$data/once"
# A key in the format of any client's, which nobody has enrolled.
{
	echo '-----BEGIN PRIVATE KEY-----'
	{ printf '\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20'; head -c 32 /dev/urandom; } | base64
	echo '-----END PRIVATE KEY-----'
} >"$data/stranger.key"
chmod 600 "$data/stranger.key"
refused sender_unknown dals-host send nora template.echo '{"message": "hi"}' --key "$data/stranger.key"

title 'The host is killed; its workers run on, and the next host takes them over'
serial=$(dals-host worker nora --json | field worker_serial)
running=$(processes_of "$serial")
[ -n "$running" ] || fail 'no process of the worker was found'
echo "\$ kill -9 $host"
kill -9 "$host"
wait "$host" 2>/dev/null || true
echo "\$ dals-host serve --launcher $launcher &"
serve
show dals-host send nora template.echo '{"message": "still here"}'
show dals-host send leo ledger.checkpoint
[ "$(processes_of "$serial")" = "$running" ] || fail 'the worker was started again'
[ "$(dals-host worker nora --json | field port)" = "$port" ] || fail 'the port has changed'

title 'The record proves who asked what of whom'
show dals-host vault verify
show dals-host verify nora
id=$(dals-host send nora template.echo '{"message": "on record"}' --json | field id)
for _ in $(seq 50); do dals-host vault prove "$id" >/dev/null 2>&1 && break; sleep 0.1; done
show dals-host vault prove "$id"

title 'Down: nothing is left'
ledger=$(dals-host worker leo --json | field worker_serial)
show dals-host down
wait "$host" || fail 'the host did not end well'
host=
for trace in "$serial" "$ledger" "$data" "dals-$name"; do
	left=$(processes_of "$trace")
	[ -z "$left" ] || fail "processes are left that name $trace: $left"
done
! grep -qe "$data" -e "dals-$name" /proc/mounts || fail 'mounts are left'
! grep -qe "$data" -e "$name" /proc/net/unix || fail 'sockets are left'
for trace in /sys/fs/cgroup/"dals-$name" /sys/fs/cgroup/*/"dals-$name" /run/dals-"$name"; do
	[ ! -e "$trace" ] || fail "$trace is left"
done
rm -rf "$data"
[ ! -e "$data" ] || fail 'the data folder cannot be deleted'
echo '  no process, container, mount, socket or file'
printf '\ndemo: all as it should be\n'
