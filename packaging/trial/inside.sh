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
mode() { stat -c '%a %U:%G' "$1"; }

ip link set lo up
ip link add lan type bridge
ip address add 10.1.1.1/24 dev lan
ip link set lan up

say "Installed"
dpkg -i "$deb" >"$log" 2>&1 || show <"$log"
promise "the daemon runs" active "$(systemctl is-active vragent)"
promise "and will after a boot" enabled "$(systemctl is-enabled vragent)"
promise "as a user of its own" vragent "$(ps -o user= -p "$(property MainPID)")"
promise "with four powers" cap_net_bind_service,cap_net_admin,cap_net_raw,cap_lease "$(powers)"
promise "exposed no more than 1.8" yes "$(exposed 1.8)"
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

say "Upgraded"
before=$(property MainPID)
echo '# a change by the administrator' >>/etc/vragent/agent.yaml
dpkg -i "$deb" >"$log" 2>&1 || show <"$log"
promise "the new one serves" 0 "$(exit_status within 15 another)"
promise "with the configuration of the administrator" 0 "$(exit_status grep -q administrator /etc/vragent/agent.yaml)"

say "Removed, and purged"
dpkg -r vragent >"$log" 2>&1 || show <"$log"
promise "the daemon is stopped" inactive "$(systemctl is-active vragent || true)"
promise "the configuration stays" 0 "$(exit_status ls /etc/vragent/agent.yaml)"
promise "what was dropped stays" 0 "$(exit_status ls $drop/vms/web-1/vm.yaml)"
dpkg -P vragent >"$log" 2>&1 || show <"$log"
promise "nothing of it is left" "" "$(ls -d /etc/vragent /var/lib/vragent /run/vragent /lib/systemd/system/vragent.service 2>/dev/null)"

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
