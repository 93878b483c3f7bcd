#!/bin/bash
# Stand-in: takes an aggregated file in. vr_cfg.sh -c FILE
# A failing command ends the loop, and the exit status is 0 all the same, as with the original.
[ "$1" = -c ] && [ -r "$2" ] || { echo "usage: vr_cfg.sh -c FILE"; exit 1; }
export DEFER_CONFIG=true
log=/var/log/cloud.log
echo "standin: vr_cfg.sh $2" >>"$log"
file=
want=
while read -r line; do
	case "$want$line" in
	'#'*) ;;
	'<file>') want=path: ;;
	'<script>') want=command: ;;
	'path:'*)
		file=$line want=content:
		rm -f "$file"
		;;
	'content:</file>') want= ;;
	'content:'*) echo "$line" >>"$file" ;;
	'command:</script>') want= ;;
	'command:'*) eval "$line" >>"$log" 2>&1 </dev/null || break ;;
	esac
done <"$2"
mkdir -p /var/cache/cloud/processed
mv "$2" /var/cache/cloud/processed/
[ ! -e /etc/cloudstack/dhcpentry.json ] || /opt/cloud/bin/configure.py vm_dhcp_entry.json >>"$log" 2>&1
[ ! -e /etc/cloudstack/vmdata.json ] || /opt/cloud/bin/configure.py vm_metadata.json >>"$log" 2>&1
exit 0
