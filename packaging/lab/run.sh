#!/bin/sh
# The lab: routers, guests and a management server, as real as one machine can have them.
#
#   packaging/lab/run.sh FILE.deb...
#
# Routers and guests are Debian machines of their own in systemd-nspawn, with systemd as init; the
# management server drops files by scp and calls by ssh, from outside. Each scenario (scenarios/*.sh, or
# those named in $SCENARIOS) has namespaces of its own, which end with it however it ends; nothing of it
# can reach this machine's network. What stays are the trees that the machines start from, in
# $XDG_CACHE_HOME or /var/cache.
#
# Exit status 0 when all was as promised, 1 when not, 77 when this machine cannot run it; it says why.
set -eu

cannot() {
	echo "lab: this machine cannot run it: $*" >&2
	exit 77
}

[ $# -gt 0 ] || {
	echo "usage: $0 FILE.deb..." >&2
	exit 64
}
here=$(cd "$(dirname "$0")" && pwd)
[ "$(id -u)" -eq 0 ] || cannot "it boots systems in namespaces, which needs root"
missing=
for tool in debootstrap systemd-nspawn unshare nsenter findmnt flock ip ssh scp ssh-keygen; do
	command -v $tool >/dev/null || missing="$missing $tool"
done
[ -z "$missing" ] || cannot "it lacks$missing (packaging/deps.sh lab installs what is needed)"
groups=$(findmnt -n -o TARGET -t cgroup2 | head -n 1)
[ -n "$groups" ] || cannot "no cgroup2 is mounted, which systemd wants"
mine=$groups$(sed -n 's/^0:://p' /proc/self/cgroup)/vragent-lab.$$

# empty removes the control groups of what has ended, once the kernel is done with it.
empty() {
	until find "$mine" -depth -type d -exec rmdir {} + 2>/dev/null || [ ! -d "$mine" ]; do sleep 0.05; done
}

dir=$(mktemp -d)
child=
tidy() {
	if [ -n "$child" ]; then
		kill -KILL "$child" 2>/dev/null || true # and with it all in its namespaces
		wait "$child" 2>/dev/null || true
	fi
	empty
	rm -rf "$dir"
}
trap tidy EXIT
trap 'exit 130' INT TERM

# boxed COMMAND...: runs it in namespaces of its own, which end with it.
boxed() {
	mkdir "$mine" || return 1
	sh -c 'echo $$ >"$0/cgroup.procs"; exec unshare --mount --pid --net --ipc --uts --cgroup --fork --kill-child --mount-proc "$@"' \
		"$mine" "$@" </dev/null &
	child=$!
	status=0
	wait "$child" || status=$?
	child=
	empty
	return "$status"
}

scenarios=${SCENARIOS:-$(cd "$here/scenarios" && for s in *.sh; do echo "${s%.sh}"; done)}
for scenario in $scenarios; do
	[ -e "$here/scenarios/$scenario.sh" ] || {
		echo "$0: there is no scenario $scenario; there are: $(cd "$here/scenarios" && echo *.sh | sed 's/\.sh//g')" >&2
		exit 64
	}
done

boxed mount -t tmpfs tmpfs /run >"$dir/try" 2>&1 || cannot "control groups and namespaces are not to be had: $(cat "$dir/try")"
cache=${XDG_CACHE_HOME:-/var/cache}/vragent-lab
"$here/images.sh" "$cache"
# What a machine needs, tried with one that ends at once.
boxed sh -euc '
	mount -t tmpfs tmpfs /run
	mkdir /run/upper /run/work /run/disk /run/netns
	mount -t overlay overlay -o "lowerdir=$1,upperdir=/run/upper,workdir=/run/work" /run/disk
	mount -t cgroup2 cgroup2 /sys/fs/cgroup
	ip netns add try
	ip link add lab type bridge
	ip link add try type veth peer name eth0 netns try
	systemd-nspawn --quiet --register=no --keep-unit --machine=try --directory=/run/disk --network-namespace-path=/run/netns/try \
		--capability=CAP_NET_ADMIN --resolv-conf=off --link-journal=no --as-pid2 /bin/true' - "$cache/base" >"$dir/try" 2>&1 ||
	cannot "no machine starts in systemd-nspawn: $(cat "$dir/try")"

ssh-keygen -q -t ed25519 -N '' -C management -f "$dir/management"
ssh-keygen -q -t ed25519 -N '' -C user -f "$dir/user"
mkdir "$dir/debs"
cp "$@" "$dir/debs/"
bad=
for scenario in $scenarios; do
	began=$(date +%s)
	boxed timeout --kill-after=5 600 "$here/inside.sh" "$here/scenarios/$scenario.sh" "$cache" "$dir" || bad="$bad $scenario"
	echo "$scenario took $(($(date +%s) - began)) s"
done
[ -z "$bad" ] || {
	echo "lab: not as promised:$bad" >&2
	exit 1
}
