#!/bin/sh
# Shows what vragent does, on this machine and in under a minute: packaging/demo/run.sh bin/vragent
#
# All of it happens in namespaces of its own, which end with this script however it ends:
#
#     router                                        guests
#   +-------------------------------+   veth   +---------------+
#   | vragent     lan (bridge)      |----------| web-1  eth0   |  dhclient
#   |             10.1.1.1/24       |          +---------------+
#   |             02:...:01         |   veth   +---------------+
#   |                               |----------| web-2  eth0   |  udhcpc
#   +-------------------------------+          +---------------+
#
# Exit status 0 when everything shown was as promised.
set -eu

[ $# -eq 1 ] || {
	echo "usage: $0 VRAGENT" >&2
	exit 64
}
here=$(cd "$(dirname "$0")" && pwd)
agent=$(readlink -f "$1")

# Without root, a user namespace gives what power there is to have over one's own namespaces.
unprivileged=
if [ "$(id -u)" -ne 0 ]; then
	unprivileged='--user --map-root-user'
	# shellcheck disable=SC2086 # options
	unshare $unprivileged --net true 2>/dev/null || {
		echo "demo: this machine lets nobody but root make namespaces: run it as root" >&2
		exit 1
	}
fi

dir=$(mktemp -d)
child=
tidy() {
	if [ -n "$child" ]; then
		kill -KILL "$child" 2>/dev/null || true # and with it all in its namespaces
		wait "$child" 2>/dev/null || true
	fi
	rm -rf "$dir"
}
trap tidy EXIT
trap 'echo; echo "demo: interrupted; everything is taken down"; exit 130' INT TERM

# shellcheck disable=SC2086 # options
unshare $unprivileged --net --mount --pid --fork --kill-child --mount-proc \
	"$here/inside.sh" "$agent" "$dir" &
child=$!
status=0
wait "$child" || status=$?
child=
exit "$status"
