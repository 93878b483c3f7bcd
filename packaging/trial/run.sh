#!/bin/sh
# Tries packages on a booted system: packaging/trial/run.sh SCRIPT FILE...
#
# SCRIPT is the trial; it finds the files, a package without its version and architecture, in the
# folder that it lies in itself.
#
# The system is a copy of this machine's in namespaces: an overlay of its file system, a network of
# its own and its systemd as the first process. Nothing that happens there stays. Needs root.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
script=$(readlink -f "$1")
shift
[ "$(id -u)" -eq 0 ] || {
	echo "$0: run it as root: it boots a system in namespaces" >&2
	exit 1
}

# systemd wants a cgroup of its own.
groups=$(findmnt -n -o TARGET -t cgroup2 | head -n 1)
mine=$groups$(sed -n 's/^0:://p' /proc/self/cgroup)/vragent-trial.$$
dir=$(mktemp -d)
child=
tidy() {
	if [ -n "$child" ]; then
		kill -KILL "$child" 2>/dev/null || true # and with it all in its namespaces
		wait "$child" 2>/dev/null || true
	fi
	until find "$mine" -depth -type d -exec rmdir {} + 2>/dev/null || [ ! -d "$mine" ]; do sleep 0.05; done
	rm -rf "$dir"
}
trap tidy EXIT
trap 'exit 130' INT TERM

mkdir "$mine"
mkdir "$dir/box" "$dir/out"
cp "$script" "$dir/out/inside.sh"
cp "$here/../promise.sh" "$dir/out/"
for file; do
	case $file in
	*.deb) cp "$file" "$dir/out/$(basename "${file%%_*}").deb" ;;
	*.rpm) cp "$file" "$dir/out/vragent.rpm" ;;
	*) cp -R "$file" "$dir/out/" ;;
	esac
done
sh -c 'echo $$ >"$0/cgroup.procs"; exec unshare --mount --pid --net --ipc --uts --cgroup --fork --kill-child "$@"' \
	"$mine" "$here/boot.sh" "$dir/box" "$dir/out" >"$dir/boot.log" 2>&1 </dev/null &
child=$!
started=$(date +%s)
while kill -0 "$child" 2>/dev/null && [ $(($(date +%s) - started)) -lt 300 ]; do sleep 0.1; done
cat "$dir/out/out" 2>/dev/null || cat "$dir/boot.log"
[ "$(cat "$dir/out/status" 2>/dev/null)" = 0 ]
