# shellcheck shell=sh
# The management server, as the routers see it: files by scp, calls by ssh, port 3922.

ssh_options="-q -i $dir/management -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ConnectTimeout=5"

# router NAME CONTROL-ADDRESS COMMAND-LINE: a system VM that is switched off, and the line that its
# hypervisor leaves for it.
router() {
	machine "$1" router
	echo "$2" >"$lab/$1/control"
	echo "name=$1 $3" >"$lab/$1/disk/var/cache/cloud/cmdline"
	cp "$dir/management.pub" "$lab/$1/disk/root/.ssh/authorized_keys"
	# It forwards, and says at once to whoever asks a resolver outside that there is no way there.
	ip netns exec "$1" sysctl -q net.ipv4.ip_forward=1 net.ipv4.icmp_ratelimit=0
}
# with_packages ROUTER [PATTERN]: has them in its image, or those alone whose names fit.
with_packages() {
	mkdir "$lab/$1/disk/root/debs"
	cp "$dir"/debs/${2:-*.deb} "$lab/$1/disk/root/debs/"
	mount -t proc proc "$lab/$1/disk/proc"
	chroot "$lab/$1/disk" sh -c 'dpkg -i /root/debs/*' >"$lab/$1/dpkg" 2>&1 || {
		cat "$lab/$1/dpkg" >&2
		return 1
	}
	umount "$lab/$1/disk/proc"
}

# on ROUTER COMMAND...
on() {
	control=$(cat "$lab/$1/control")
	shift
	# shellcheck disable=SC2086 # options
	ssh -p 3922 $ssh_options "root@$control" "$@"
}

# drop ROUTER BASE [false]: one order, whose JSON is standard input; prints what the router says, and
# its exit status is what the server sees.
drop() {
	name=$2.json.$(cat /proc/sys/kernel/random/uuid)
	cat >"$lab/$name"
	# shellcheck disable=SC2086 # options
	scp -P 3922 $ssh_options "$lab/$name" "root@$(cat "$lab/$1/control"):/var/cache/cloud/" &&
		on "$1" "/opt/cloud/bin/update_config.py $name ${3:-}"
}
# put ROUTER FOLDER: the files of a drop directory, by plain scp; prints what became of them.
put() {
	# shellcheck disable=SC2086 # options
	scp -r -P 3922 $ssh_options "$2/." "root@$(cat "$lab/$1/control"):/var/lib/vragent/drop/" &&
		on "$1" vragent wait
}

# order BASE: a further order for aggregated, whose JSON is standard input.
order() {
	name=/var/cache/cloud/$1.json.$(cat /proc/sys/kernel/random/uuid)
	[ -e "$lab/aggregated" ] || printf '#Apache CloudStack Virtual Router Config File\n<version>\n1.0\n</version>\n' >"$lab/aggregated"
	{
		printf '<file>\n%s\n' "$name"
		cat
		printf '</file>\n<script>\n/opt/cloud/bin/update_config.py %s\n</script>\n' "${name##*/}"
	} >>"$lab/aggregated"
}
# aggregated ROUTER: all orders since the last time, in one file.
aggregated() {
	name=VR-$(cat /proc/sys/kernel/random/uuid).cfg
	mv "$lab/aggregated" "$lab/$name"
	# shellcheck disable=SC2086 # options
	scp -P 3922 $ssh_options "$lab/$name" "root@$(cat "$lab/$1/control"):/var/cache/cloud/" &&
		on "$1" "/opt/cloud/bin/vr_cfg.sh -c /var/cache/cloud/$name"
}

# The orders' contents.
#
# dhcp_entry HOST MAC ADDRESS [DEFAULT [REMOVE]]
dhcp_entry() {
	printf '{"host_name":"%s","mac_address":"%s","ipv4_address":"%s","ipv6_duid":"00:03:00:01:%s","dns_addresses":"%s","default_gateway":"%s","default_entry":%s,"remove":%s,"lease_time":0,"type":"dhcpentry","delete_from_processed_cache":false}\n' \
		"$1" "$2" "$3" "$2" "${3%.*}.1" "${3%.*}.1" "${4:-true}" "${5:-false}"
}
# vm_metadata HOST UUID ADDRESS KEYS <USER-DATA: keys may be null.
vm_metadata() {
	userdata=$(base64 -w 0)
	keys=null
	[ "$4" = null ] || keys=\"$4\"
	printf '{"vm_ip_address":"%s","vm_metadata":[["userdata","user-data",%s],["metadata","service-offering","Small Instance"],["metadata","availability-zone","zone-a"],["metadata","local-ipv4","%s"],["metadata","local-hostname","%s"],["metadata","public-ipv4","203.0.113.24"],["metadata","public-hostname","203.0.113.24"],["metadata","instance-id","%s"],["metadata","vm-id","%s"],["metadata","public-keys",%s],["metadata","cloud-identifier","CloudStack-{3f0f8d52-6f0f-4a5b-9a3d-2f7d1d0f6b10}"],["metadata","hypervisor-host-name",""]],"type":"vmdata","delete_from_processed_cache":false}\n' \
		"$3" "$([ -n "$userdata" ] && echo "\"$userdata\"" || echo null)" "$3" "$1" "$2" "$2" "$keys"
}
# vm_password ADDRESS PASSWORD
vm_password() { printf '{"ip_address":"%s","password":"%s","type":"vmpassword","delete_from_processed_cache":false}\n' "$1" "$2"; }

# An isolated network: 10.1.1.0/24, whose router is .1. Its VMs are told apart by the last number.
#
# isolated_router NAME: the router, switched off.
isolated_router() {
	router "$1" 169.254.88.17 'template=domP type=router eth0ip=10.1.1.1 eth0mask=255.255.255.0 eth1ip=169.254.88.17 eth1mask=255.255.0.0 eth2ip=203.0.113.24 eth2mask=255.255.255.0 gateway=203.0.113.1 domain=cs7cloud.internal cidrsize=24 dhcprange=10.1.1.1 disable_rp_filter=true dns1=192.0.2.53 dns2=198.51.100.53'
	plug "$1" eth0 02:00:0a:01:01:01 guests
	plug "$1" eth1 0e:00:a9:fe:58:11 control
	plug "$1" eth2 1e:00:cb:00:71:18 public
}
mac() { echo "02:01:00:cb:00:$1"; }
uuid() { echo "0b3b9a6e-3d3d-4c55-a4f6-1f6b1f0f9d$1"; }
# start ROUTER NAME NUMBER: what the router is told before a VM boots. Its password is $first and the
# number, its user data a script.
first='first&=%+q$z'
start() {
	dhcp_entry "$2" "$(mac "$3")" "10.1.1.$3" | drop "$1" vm_dhcp_entry &&
		printf '#!/bin/sh\necho "%s says hello" >/root/ran\n' "$2" |
		vm_metadata "$2" "$(uuid "$3")" "10.1.1.$3" "$(cat "$dir/user.pub")" | drop "$1" vm_metadata &&
		vm_password "10.1.1.$3" "$first$3" | drop "$1" vm_password
}
