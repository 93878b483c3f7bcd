#!/bin/sh
# The trial itself, as a service of the booted copy: installs the Debian package, uses it as an
# operator would, and removes it; then the rpm, whose scripts do not need a system of its own.
set -eu

# shellcheck source=packaging/promise.sh
. "$(dirname "$0")/promise.sh"
deb=$(dirname "$0")/vragent.deb
rpm=$(dirname "$0")/vragent.rpm
drop=/var/lib/vragent/drop
log=/tmp/log

property() { systemctl show --property "$1" --value vragent; }
active() { [ "$(systemctl is-active vragent)" = active ]; }
answers() { vragent status >/dev/null 2>&1; }
serves() { ss -Hlnt 'sport = 80' | grep -q '10.1.1.1%lan:80'; }
powers() { capsh --decode="$(sed -n 's/^CapEff:\t//p' "/proc/$(property MainPID)/status")" | sed 's/.*=//'; }
# exposed BAR: yes, or the score where systemd finds the service more exposed than that.
exposed() {
	systemd-analyze security vragent.service |
		awk -v bar="$1" '/Overall exposure/ {for (i = 1; i <= NF; i++) if ($i ~ /^[0-9.]+$/) print ($i + 0 <= bar + 0 ? "yes" : $i)}'
}
# unexplained names the lines that systemd would like to see and that service.md says nothing of, and those
# of service.md that it does not miss.
unexplained() {
	systemd-analyze security --json=short vragent.service | tr '{' '\n' |
		sed -n 's/.*"name":"\([^"]*\)".*"exposure":"0\..*/\1/p' | LC_ALL=C sort >/tmp/remaining
	sed -n 's/\\|/|/g; s/^| `\([^`]*\)` 0\.[0-9] | .*/\1/p' /usr/share/doc/vragent/service.md | LC_ALL=C sort | diff /tmp/remaining - || true
}
mode() { stat -c '%a %U:%G' "$1"; }

ip link set lo up
ip link add lan type bridge
ip address add 10.1.1.1/24 dev lan
ip link set lan up

# ours lists everything on the system that bears our name.
ours() { find /etc /usr /var /run -xdev -name '*vragent*' | LC_ALL=C sort; }
ours >/tmp/before

say "Installed"
dpkg -i "$deb" >"$log" 2>&1 || show <"$log"
promise "the daemon runs" active "$(systemctl is-active vragent)"
promise "and will after a boot" enabled "$(systemctl is-enabled vragent)"
promise "as a user of its own" vragent "$(ps -o user= -p "$(property MainPID)")"
promise "with four powers" cap_net_bind_service,cap_net_admin,cap_net_raw,cap_lease "$(powers)"
promise "exposed no more than 1.8" yes "$(exposed 1.8)"
promise "and service.md tells why each line of that remains" "" "$(unexplained)"
promise "drop directory" "2770 root:vragent" "$(mode $drop)"
promise "state directory" "700 vragent:vragent" "$(mode /var/lib/vragent/state)"
promise "socket" "660 vragent:vragent" "$(mode /run/vragent/api.sock)"
promise "man page" 0 "$(exit_status man -w vragent)"

say "Files dropped by root, whose umask lets nobody in"
umask 077
mkdir $drop/vms/web-1
printf 'interface: lan\ngateway: 10.1.1.1/24\n' >$drop/networks/guest-1.yaml
printf 'nics: [{network: guest-1, mac: "02:00:00:00:00:02", ipv4: 10.1.1.34}]\n' >$drop/vms/web-1/vm.yaml
umask 022
promise "are applied" applied "$(vragent wait)"
promise "and the network is served" 0 "$(exit_status serves)"
promise "and the neighbor is pinned" PERMANENT "$(ip -4 neighbor show 10.1.1.34 | grep -o PERMANENT)"

say "Reloaded"
promise "systemctl reload" 0 "$(exit_status systemctl reload vragent)"
echo 'no_such_key: 1' >/etc/vragent/agent.d/50-wrong.yaml
systemctl reload vragent
told() { ! answers; }
promise "a fault is reported" 0 "$(exit_status within 5 told)"
promise "and the daemon runs on" active "$(systemctl is-active vragent)"
promise "and serves" 0 "$(exit_status serves)"
promise "but does not start with it" 1 "$(exit_status systemctl restart vragent)"
journalctl --quiet --unit vragent --lines 1 --output cat --grep '^vragent: ' | show
rm /etc/vragent/agent.d/50-wrong.yaml
promise "and comes back by itself once it is gone" 0 "$(exit_status within 15 answers)"

say "The drop directory removed by mistake"
rm -r $drop
systemctl restart vragent
promise "it is made anew, for the group" "2770 vragent:vragent" "$(mode $drop/vms)"
mkdir $drop/vms/web-1
printf 'interface: lan\ngateway: 10.1.1.1/24\n' >$drop/networks/guest-1.yaml
printf 'nics: [{network: guest-1, mac: "02:00:00:00:00:02", ipv4: 10.1.1.34}]\n' >$drop/vms/web-1/vm.yaml
promise "and files are applied there" applied "$(vragent wait)"

say "Without the power to change addresses"
mkdir -p /etc/systemd/system/vragent.service.d
ln -s /dev/null /etc/systemd/system/vragent.service.d/net-admin.conf
systemctl daemon-reload
systemctl restart vragent
promise "three powers are left" cap_net_bind_service,cap_net_raw,cap_lease "$(powers)"
promise "exposed no more than 1.6" yes "$(exposed 1.6)"
promise "what does not need it is applied" applied "$(vragent wait)"
promise "and served" 0 "$(exit_status within 15 serves)"
printf 'interface: lan\ngateway: 10.1.2.1/24\nmanage_address: true\n' >$drop/networks/guest-2.yaml
promise "what needs it is rejected" 1 "$(exit_status vragent wait networks/guest-2.yaml)"
promise "with the reason" yes "$(vragent status | tr -s ' \n' ' ' | grep -q 'guest-2.yaml:3:17: manage_address.*CAP_NET_ADMIN' && echo yes)"
rm /etc/systemd/system/vragent.service.d/net-admin.conf
systemctl daemon-reload
systemctl restart vragent
promise "applied once the power is back" applied "$(vragent wait)"
promise "with the address" 1 "$(ip -4 -o address show dev lan | grep -c '10\.1\.2\.1/24')"
rm $drop/networks/guest-2.yaml

say "Killed"
before=$(property MainPID)
kill -KILL "$before"
changed() { [ "$(property MainPID)" != "$before" ] && answers; }
another() { [ "$(property MainPID)" != "$before" ] && answers && serves; }
promise "another one serves" 0 "$(exit_status within 15 another)"

say "Hung"
mkdir -p /run/systemd/system/vragent.service.d
printf '[Service]\nWatchdogSec=2\n' >/run/systemd/system/vragent.service.d/trial.conf
systemctl daemon-reload
systemctl restart vragent
before=$(property MainPID)
kill -STOP "$before"
promise "the watchdog replaces it" 0 "$(exit_status within 20 another)"

say "Restarted under load"
rm -r /run/systemd/system/vragent.service.d
systemctl daemon-reload
echo 'metadata: {guest_rate: 0}' >/etc/vragent/agent.d/50-load.yaml
systemctl restart vragent
ip netns add guest
ip link add lan-guest type veth peer name eth0 netns guest
ip link set lan-guest master lan up
ip -n guest link set eth0 address 02:00:00:00:00:02 up
ip -n guest address add 10.1.1.34/24 dev eth0
ip link add lan-stranger type veth peer name eth1 netns guest
ip link set lan-stranger master lan up
ip -n guest link set eth1 up
printf 'interface: lan\ngateway: 10.1.1.1/24\npool: {from: 10.1.1.200, to: 10.1.1.210}\n' >$drop/networks/guest-1.yaml
promise "a pool is applied" applied "$(vragent wait)"
guest() { ip netns exec guest "$@"; }
api() { curl -sSf --max-time 10 --unix-socket /run/vragent/api.sock http://vragent/client/api -d response=json "$@"; }
load='new-connections kept-connection dhcp dhcp-of-a-stranger lists pushes'
new_connections() { guest curl -sSf --max-time 10 http://10.1.1.1/latest/instance-id; }
kept_connection() { guest curl -sSf --max-time 60 'http://10.1.1.1/latest/instance-id?[1-500]'; }
lease() { guest busybox udhcpc -i "$1" -f -n -q -t 1 -T 3 -s /bin/true; } # asks once, and waits 3 s
dhcp() { lease eth0; }
dhcp_of_a_stranger() { lease eth1; }
lists() { api -d command=listVirtualMachines; }
pushes() { api -d command=pushVirtualMachine -d id=web-1 -d hostname=web-1; }
# again NAME: does it again and again until the load is over, and keeps count and what failed.
again() {
	: >"/tmp/done.$1"
	while [ ! -e /tmp/over ]; do
		"$(echo "$1" | tr - _)" >"/tmp/said.$1" 2>&1 || echo "$1 at $(date +%T.%3N): $(tail -n 1 "/tmp/said.$1")" >>/tmp/failed
		echo >>"/tmp/done.$1"
	done
}
# twice: everything was done twice more since the counts were taken, and so once from its beginning.
counts() { for name in $load; do wc -l <"/tmp/done.$name"; done; }
twice() { counts | paste /tmp/counts - | awk '$2 < $1 + 2 {exit 1}'; }
more() { counts >/tmp/counts && within 60 twice; }
loops=
for name in $load; do
	again "$name" &
	loops="$loops $!"
done
until counts >/tmp/counts 2>/dev/null; do sleep 0.1; done
promise "guests and programs have work to do" 0 "$(exit_status more)"
promise "four sockets are kept" 4 "$(property NFileDescriptorStore)"
for restart in 1 2 3 4 5 6 7 8 9 10; do
	systemctl restart vragent || echo "restart $restart failed" >>/tmp/failed
	more || echo "nothing went on after restart $restart" >>/tmp/failed
done
promise "ten restarts, and nothing failed" "" "$(cat /tmp/failed 2>/dev/null)"
# What took longer than the 3 s that a client waits here would show in these times.
[ ! -e /tmp/failed ] || journalctl --quiet --output short-precise -u vragent --grep 'Stopping|Starting|Started|serving' | show
promise "four sockets are kept" 4 "$(property NFileDescriptorStore)"

say "Upgraded under load"
before=$(property MainPID)
echo '# a change by the administrator' >>/etc/vragent/agent.yaml
dpkg -i "$deb" >"$log" 2>&1 || show <"$log"
promise "the new one serves" 0 "$(exit_status within 15 another)"
more || echo "nothing went on after the upgrade" >>/tmp/failed
: >/tmp/over
# shellcheck disable=SC2086
wait $loops || true
promise "and nothing failed" "" "$(cat /tmp/failed 2>/dev/null)"
for name in $load; do echo "$(wc -l <"/tmp/done.$name") $name"; done | show
rm /etc/vragent/agent.d/50-load.yaml
promise "with the configuration of the administrator" 0 "$(exit_status grep -q administrator /etc/vragent/agent.yaml)"
systemctl stop vragent
promise "stopped, it keeps no socket" 0 "$(property NFileDescriptorStore)"
systemctl start vragent

say "Removed, and purged"
dpkg -r vragent >"$log" 2>&1 || show <"$log"
promise "the daemon is stopped" inactive "$(systemctl is-active vragent || true)"
promise "the configuration stays" 0 "$(exit_status ls /etc/vragent/agent.yaml)"
promise "what was dropped stays" 0 "$(exit_status ls $drop/vms/web-1/vm.yaml)"
dpkg -P vragent >"$log" 2>&1 || show <"$log"
promise "nothing of it is left" "" "$(ours | diff /tmp/before - || true)"

say "The rpm installed"
rpms() { rpm --force-debian --nodeps "$@" >"$log" 2>&1 || show <"$log"; }
rpms -i "$rpm"
promise "nothing is started" inactive "$(systemctl is-active vragent || true)"
promise "drop directory" "2770 root:vragent" "$(mode $drop)"
systemctl start vragent
promise "it runs" 0 "$(exit_status within 15 answers)"
promise "exposed no more than 1.8" yes "$(exposed 1.8)"
before=$(property MainPID)
echo '# a change by the administrator' >>/etc/vragent/agent.yaml
rpms -U --force "$rpm"
promise "upgraded, the new one runs" 0 "$(exit_status within 15 changed)"
promise "with the configuration of the administrator" 0 "$(exit_status grep -q administrator /etc/vragent/agent.yaml)"
systemctl stop vragent
rpms -U --force "$rpm"
promise "upgraded while stopped, it stays stopped" inactive "$(systemctl is-active vragent || true)"
systemctl start vragent
rpms -e vragent
promise "erased, it is stopped" inactive "$(systemctl is-active vragent || true)"
promise "what was dropped stays" 0 "$(exit_status ls $drop)"
promise "and the changed configuration" "agent.yaml.rpmsave" "$(ls /etc/vragent)"
promise "and nothing else" "" "$(ls -d /usr/bin/vragent /run/vragent /usr/lib/systemd/system/vragent.service* /usr/share/vragent 2>/dev/null)"

[ "$broken" -eq 0 ] || journalctl --quiet --unit vragent --output cat | tail -n 30 | show
verdict
