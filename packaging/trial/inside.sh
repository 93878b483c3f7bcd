#!/bin/sh
# The trial itself, as a service of the booted copy: installs the package, uses it as an operator
# would, and removes it.
set -eu

# shellcheck source=packaging/promise.sh
. "$(dirname "$0")/promise.sh"
deb=$(dirname "$0")/vragent.deb
drop=/var/lib/vragent/drop
log=/tmp/log

property() { systemctl show --property "$1" --value vragent; }
active() { [ "$(systemctl is-active vragent)" = active ]; }
answers() { vragent status >/dev/null 2>&1; }
serves() { ss -Hlnt 'sport = 80' | grep -q '10.1.1.1%lan:80'; }
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
promise "with four powers" cap_net_bind_service,cap_net_admin,cap_net_raw,cap_lease \
	"$(capsh --decode="$(sed -n 's/^CapEff:\t//p' "/proc/$(property MainPID)/status")" | sed 's/.*=//')"
promise "exposed no more than 2.0" yes \
	"$(systemd-analyze security vragent.service | awk '/Overall exposure/ {for (i = 1; i <= NF; i++) if ($i ~ /^[0-9.]+$/) print ($i <= 2.0 ? "yes" : $i)}')"
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

say "Killed"
before=$(property MainPID)
kill -KILL "$before"
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

[ "$broken" -eq 0 ] || journalctl --quiet --unit vragent --output cat | tail -n 30 | show
verdict
