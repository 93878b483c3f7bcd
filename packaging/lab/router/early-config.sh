#!/bin/sh
# What a CloudStack system VM does first at each boot: reads the line that its hypervisor left,
# gives its NICs their addresses and writes the line down as cmd_line.json for the scripts that
# come after it (cloud-postinit).
set -eu

line=/var/cache/cloud/cmdline
[ -e $line ] || exit 0
json=
for word in $(cat $line); do
	key=${word%%=*}
	value=$(echo "$word" | cut -d= -f2)
	json="$json${json:+,}\"$key\":\"$value\""
	case $key in
	name) hostname "$value" ;;
	eth[0-9]ip) eval "${key%ip}_ip=$value" ;;
	eth[0-9]mask) eval "${key%mask}_mask=$value" ;;
	esac
done
for nic in eth0 eth1 eth2; do
	eval "ip=\${${nic}_ip:-} mask=\${${nic}_mask:-}"
	[ -n "$ip" ] || continue
	ip address replace "$ip/$mask" dev $nic
	ip link set $nic up
done
printf '{"type":"cmdline","cmd_line":{%s}}\n' "$json" >/var/cache/cloud/cmd_line.json
