# shellcheck shell=sh
# The lab's machines: made, plugged in, switched on, and looked into.
#
# A machine is a folder of $lab, a network namespace and a control group of the same name.

# machine NAME TREE: a machine that is switched off, with a copy of the tree for a disk.
machine() {
	mkdir "$lab/$1" "$lab/$1/upper" "$lab/$1/work" "$lab/$1/disk" "/sys/fs/cgroup/$1"
	mount -t overlay overlay -o "lowerdir=$trees/$2,upperdir=$lab/$1/upper,workdir=$lab/$1/work" "$lab/$1/disk"
	ip netns add "$1"
	ip -n "$1" link set lo up
}

# plug NAME DEVICE MAC NETWORK: a NIC, running machine or not.
plug() {
	ip link add "$1-$2" type veth peer name "$2" address "$3" netns "$1"
	ip link set "$1-$2" master "$4" up
}

# boot NAME...: switches machines on, for good: they may reboot. Returns when all of them are up.
boot() {
	for name; do
		keep "$name" >"$lab/$name/console" 2>&1 </dev/null &
	done
	for name; do
		within 60 is_up "$name" || {
			echo "machine $name does not come up; its console:"
			tail -n 20 "$lab/$name/console"
			exit 1
		} >&2
	done
}
# The network is the machine's: /sys shows it, and its settings can be written. nspawn ends with 133
# where its machine is to be started once more.
keep() {
	while
		status=0
		SYSTEMD_NSPAWN_API_VFS_WRITABLE=network sh -c 'echo $$ >"/sys/fs/cgroup/$1/cgroup.procs"; echo $$ >"$0/$1/pid"
			exec systemd-nspawn --quiet --register=no --keep-unit --boot --machine="$1" --hostname=unnamed \
				--directory="$0/$1/disk" --network-namespace-path="/run/netns/$1" --capability=CAP_NET_ADMIN \
				--resolv-conf=off --link-journal=no --console=pipe' \
			"$lab" "$1" || status=$?
		[ "$status" -eq 133 ]
	do :; done
}

# init_of NAME prints the process that is the machine's init.
init_of() {
	pid=$(cat "$lab/$1/pid")
	pid=$(cat "/proc/$pid/task/$pid/children" 2>/dev/null)
	[ -n "$pid" ] && echo "${pid%% *}"
}

# inside NAME COMMAND...: as root at the machine's console.
inside() {
	init=$(init_of "$1") || return 1
	shift
	nsenter --target "$init" --all --root --wd -- env -i HOME=/root LANG=C.UTF-8 \
		PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
}

# is_up NAME: its init has started all that it was to start, for better or worse.
is_up() {
	state=$(inside "$1" systemctl is-system-running 2>/dev/null)
	[ "$state" = running ] || [ "$state" = degraded ]
}

# reboot NAME: as its owner would; returns when it is up again.
reboot() {
	before=$(init_of "$1")
	inside "$1" systemctl reboot >"$lab/$1/reboot" 2>&1 || true # it may be gone before it has answered
	within 60 is_another "$1" "$before" && within 60 is_up "$1" || {
		echo "machine $1 does not reboot: $(cat "$lab/$1/reboot")" >&2
		exit 1
	}
}
is_another() {
	now=$(init_of "$1") && [ "$now" != "$2" ]
}

# destroy NAME: pulls the plug; machine, disk and NICs are gone.
destroy() {
	kill -KILL "$(init_of "$1")"
	until [ -z "$(cat "/sys/fs/cgroup/$1/cgroup.procs")" ] && ! init_of "$1" >/dev/null; do sleep 0.02; done
	ip netns delete "$1"
	umount "$lab/$1/disk"
	rm -rf "${lab:?}/$1"
	find "/sys/fs/cgroup/$1" -depth -type d -exec rmdir {} +
}

# guest NAME CLIENT MAC NETWORK: a machine with cloud-init, whose NIC is set up by dhclient, udhcpc,
# dhcpcd or networkd.
guest() {
	machine "$1" guest
	disk=$lab/$1/disk
	case $2 in # ifupdown takes the first of them that there is; cloud-init takes networkd without it
	dhclient) ;;
	udhcpc) rm "$disk/sbin/dhclient" ;;
	dhcpcd) rm "$disk/sbin/dhclient" "$disk/sbin/udhcpc" ;;
	networkd)
		rm "$disk/sbin/dhclient" "$disk/sbin/ifup" "$disk/sbin/ifdown" "$disk/sbin/ifquery"
		chroot "$disk" systemctl --quiet disable networking
		chroot "$disk" systemctl --quiet enable systemd-networkd
		;;
	esac
	plug "$1" eth0 "$3" "$4"
}

# failed NAME prints its units that have failed; errors NAME [MARK] what those of vragent logged as
# errors, since the mark.
failed() { inside "$1" systemctl list-units --state failed --plain --no-legend | cut -d ' ' -f 1; }
errors() { inside "$1" journalctl --quiet --no-pager --output cat --priority err --unit 'vragent*' ${2:+--after-cursor "$2"}; }
mark() { inside "$1" journalctl --quiet --lines 1 --show-cursor | sed -n 's/^-- cursor: //p'; }
# listens NAME -t|-u PORT prints the programs that do.
listens() { inside "$1" ss -Hlnp "$2" "sport = $3" | sed -n 's/.*users:(("\([^"]*\)".*/\1/p' | sort -u; }
# serving NAME prints who answers DHCP, metadata and passwords.
serving() { echo $(listens "$1" -u 67) $(listens "$1" -t 80) $(listens "$1" -t 8080); }

# What a guest made of it.
#
# cloud_init NAME prints done, or what it has to say instead. Warnings are its log's.
cloud_init() {
	inside "$1" timeout 120 cloud-init status --wait --long >"$lab/$1/cloud-init" 2>&1 || true
	sed -n 's/^status: //p; /^DataSource/p' "$lab/$1/cloud-init" | grep -v '^DataSourceCloudStack$'
}
address_of() { inside "$1" ip -4 -o address show dev "${2:-eth0}" scope global | awk '{print $4}'; }
# with_key ROUTER ADDRESS COMMAND... and with_password PASSWORD ROUTER ADDRESS COMMAND...: logs in as the
# user of a guest, from the router's side of the network.
login="-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ConnectTimeout=5 -o LogLevel=ERROR"
with_key() {
	from=$1
	to=$2
	shift 2
	# shellcheck disable=SC2086 # options
	ip netns exec "$from" ssh $login -i "$dir/user" -o BatchMode=yes "debian@$to" "$@"
}
with_password() {
	printf '#!/bin/sh\necho "$LAB_PASSWORD"\n' >"$lab/askpass"
	chmod 700 "$lab/askpass"
	password=$1
	from=$2
	to=$3
	shift 3
	# shellcheck disable=SC2086 # options
	LAB_PASSWORD=$password SSH_ASKPASS=$lab/askpass SSH_ASKPASS_REQUIRE=force ip netns exec "$from" \
		ssh $login -o PreferredAuthentications=password -o PubkeyAuthentication=no -o NumberOfPasswordPrompts=1 "debian@$to" "$@"
}
# fetch NAME PATH prints what the guest reads from its router.
fetch() { inside "$1" curl --silent --show-error --max-time 5 "http://10.1.1.1$2"; }
password_server() { inside "$1" curl --silent --max-time 12 --header 'DomU_Request: send_my_password' http://10.1.1.1:8080/; }

# renews NAME: asks for the address that it has, as after a reboot, and gets it.
renews() { inside "$1" dhclient -1 -v -lf /var/lib/dhcp/dhclient.eth0.leases -pf /run/again.pid eth0; }

# journals: what the machines have to say about a failure.
journals() {
	for folder in "$lab"/*/disk; do
		[ -d "$folder" ] || continue
		name=${folder%/disk}
		name=${name##*/}
		say "$name's journal"
		init_of "$name" >/dev/null || continue
		inside "$name" journalctl --quiet --no-pager --lines 40 --output short-monotonic --no-hostname | show
		[ ! -e "$folder/var/log/cloud-init.log" ] || grep -E 'WARN|ERR|Traceback' "$folder/var/log/cloud-init.log" | tail -n 20 | show
	done
}
