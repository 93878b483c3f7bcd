#!/bin/sh
# One scenario, in the namespaces that run.sh made: inside.sh SCENARIO CACHE FOLDER
set -eu

here=$(cd "$(dirname "$0")" && pwd)
scenario=$1
trees=$2
dir=$3
lab=/run/lab

mount -t tmpfs tmpfs /run
mkdir /run/netns $lab
mount -t cgroup2 cgroup2 /sys/fs/cgroup

# What the machines' NICs are plugged into. The hypervisor, which is where this runs, has a leg in the
# control network alone: there the management server reaches the routers.
ip link set lo up
for net in control guests tier public; do
	ip link add $net type bridge
	ip link set $net up
done
ip address add 169.254.0.1/16 dev control

# shellcheck source=packaging/promise.sh
. "$here/../promise.sh"
# shellcheck source=packaging/lab/machine.sh
. "$here/machine.sh"
# shellcheck source=packaging/lab/management.sh
. "$here/management.sh"

# works TEXT COMMAND...: promises that the command succeeds, and shows what it said if not.
works() {
	text=$1
	shift
	if "$@" >"$lab/said" 2>&1; then
		promise "$text" 0 0
	else
		promise "$text" "exit status 0" "exit status $?: $(tail -n 20 "$lab/said")"
	fi
}

# becomes TEXT WANT COMMAND...: promises that the command comes to print that.
becomes() {
	text=$1
	want=$2
	shift 2
	within 30 prints "$want" "$@" || true
	promise "$text" "$want" "$("$@")"
}
prints() {
	want=$1
	shift
	[ "$("$@")" = "$want" ]
}

# A scenario that breaks off is not as promised either, and its journals tell why.
finished=
leave() {
	status=$?
	[ -n "$finished" ] && [ "$broken" -eq 0 ] || journals
	exit "$status"
}
trap leave EXIT
# shellcheck disable=SC1090 # one of scenarios/
. "$scenario"
finished=yes
verdict
