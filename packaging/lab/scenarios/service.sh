# shellcheck shell=sh
# The service under load: how exposed it is, and what an upgrade costs its guests and those who change
# something meanwhile.

r=r-412-VM
upgrades=5

isolated_router $r
with_packages $r
boot $r
guest web-1 dhclient "$(mac 50)" guests
works "the router takes a VM" start $r web-1 50
boot web-1
promise "whose cloud-init is done" "done" "$(cloud_init web-1)"

say "The service's exposure"
exposure=$(inside $r systemd-analyze security vragent.service | sed -n 's/.*exposure level[^:]*: *\([0-9.]*\).*/\1/p')
echo "  systemd-analyze security: $exposure"
promise "is 1.8 or less" yes "$(awk -v is="$exposure" 'BEGIN {print is != "" && is + 0 <= 1.8 ? "yes" : "no"}')"

say "Upgraded $upgrades times under load"
# until_stop COMMAND: does it again and again, with the number of the time, until there is $lab/stop.
# Prints what it said where it failed, and how often it was done.
until_stop() {
	number=0
	while [ ! -e "$lab/stop" ]; do
		number=$((number + 1))
		said=$("$1" $number 2>&1) || echo "lost: number $number: $said"
	done
	echo "$number done"
}
# One DISCOVER an exchange: none may be lost.
exchange() { inside web-1 udhcpc -f -n -q -t 1 -T 10 -s /bin/true -i eth0; }
# A connection that is kept for 400 requests; where it is closed before a byte of an answer came, curl
# asks once more on another one.
connection() {
	inside web-1 curl --silent --show-error --fail --fail-early --max-time 60 --rate 90/s --output /dev/null \
		"http://10.1.1.1/latest/local-hostname?[1-400]"
}
# A push changes one of 100 VMs.
network=$(inside $r vragent networks -o json | sed -n 's/.*"name": "\(.*\)",/\1/p')
pushed() { printf 'hostname: push-%d\nnics: [{network: "%s", mac: "02:02:00:00:00:%02x", ipv4: 10.1.1.%d}]\n' "$1" "$network" $(($1 % 100)) $((100 + $1 % 100)); }
push() {
	folder=$lab/$r/disk/root/push
	rm -rf "$folder"
	mkdir -p "$folder/vms/pushed-$(($1 % 100))"
	pushed "$1" >"$folder/vms/pushed-$(($1 % 100))/vm.yaml"
	inside $r vragent push /root/push
}
# An order of the management server is in force when it says so.
one_order() {
	echo "order $1" | vm_metadata web-1 "$(uuid 50)" 10.1.1.50 null | drop $r vm_metadata &&
		[ "$(fetch web-1 /latest/user-data)" = "order $1" ]
}
# Held until what lies in the drop directory is judged.
long_poll() { inside $r vragent wait; }
loads=
for load in exchange connection push one_order long_poll; do
	until_stop $load >"$lab/$load" 2>&1 &
	loads="$loads $!"
done
for upgrade in $(seq $upgrades); do
	before=$(inside $r systemctl show --property MainPID --value vragent)
	works "upgrade $upgrade" on $r 'dpkg -i /root/debs/*'
	promise "  another process serves" yes "$([ "$(inside $r systemctl show --property MainPID --value vragent)" != "$before" ] && echo yes)"
done
touch "$lab/stop"
# shellcheck disable=SC2086 # a list of processes
wait $loads
count() { sed -n 's/ done$//p' "$lab/$1"; }
promise "no DHCP exchange was lost, of $(count exchange)" "" "$(grep lost "$lab/exchange")"
promise "no request on a kept connection, of $(($(count connection) * 400))" "" "$(grep lost "$lab/connection")"
promise "no push, of $(count push)" "" "$(grep lost "$lab/push")"
last=$(count push)
promise "whose last one is in force" "$(pushed "$last")" "$(inside $r cat "/var/lib/vragent/drop/vms/pushed-$((last % 100))/vm.yaml")"
promise "no long poll, of $(count long_poll)" "" "$(grep lost "$lab/long_poll")"
promise "no order, of $(count one_order)" "" "$(grep lost "$lab/one_order")"
promise "the log is without errors" "" "$(errors $r)"
promise "and no service has failed" "" "$(failed $r)"
