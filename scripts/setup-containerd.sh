#!/usr/bin/env bash
# Makes sure that containerd, crun and runc are installed; Debian's packages, by
# apt-get. Does nothing, and asks no network, when they are there already.
# No service is needed: the host starts a private containerd of its own.
#
#   setup-containerd.sh [COMMAND=PACKAGE[,PACKAGE...]]...   more commands to have
set -euo pipefail
# Where Debian installs runc, beside which crun is the faster one; not on every user's PATH.
PATH=$PATH:/usr/sbin:/sbin

missing=() packages=()
for want in containerd=containerd containerd-shim-runc-v2=containerd crun=crun runc=runc "$@"; do
	command -v "${want%%=*}" >/dev/null && continue
	missing+=("${want%%=*}")
	IFS=, read -ra more <<<"${want#*=}"
	packages+=("${more[@]}")
done
[ ${#missing[@]} -gt 0 ] || exit 0

refuse() {
	echo "setup-containerd: ${missing[*]} not found, and $1" >&2
	echo "setup-containerd: hint: $2" >&2
	exit 1
}
command -v apt-get >/dev/null ||
	refuse 'this is no Debian (no apt-get)' "install ${missing[*]} with this system's package manager, then try again"
[ "$(id -u)" -eq 0 ] ||
	refuse 'only root can install' "run: sudo apt-get install ${packages[*]}"

echo "setup-containerd: installing ${packages[*]}"
export DEBIAN_FRONTEND=noninteractive
quiet() {
	local log
	log=$(mktemp)
	"$@" >"$log" 2>&1 </dev/null || {
		cat "$log" >&2
		rm -f "$log"
		refuse "\`$*\` failed" 'its output stands above'
	}
	rm -f "$log"
}
quiet apt-get update -q
quiet apt-get install -y -q --no-install-recommends "${packages[@]}"
