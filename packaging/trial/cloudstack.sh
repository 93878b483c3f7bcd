#!/bin/sh
# The trial of vragent-cloudstack, as a service of the booted copy: a router with stand-ins for its
# own scripts and with guests; the package takes it over, lives through what the scripts do beside
# it, and gives it back.
set -eu

here=$(dirname "$0")
# shellcheck source=packaging/promise.sh
. "$here/promise.sh"
log=/run/log.install
cache=/var/cache/cloud

# A router's devices: the guests' bridge, control, public.
ip link set lo up
ip link add eth0 type bridge
ip link add eth1 type veth peer name control
ip link add eth2 type veth peer name public
for nic in eth0 eth1 eth2 control public; do ip link set $nic up; done

# guest NAME MAC: a guest in a namespace of its own.
guest() {
	ip netns add "$1"
	ip link add "$1" type veth peer name eth0 address "$2" netns "$1"
	ip link set "$1" master eth0 up
	ip -n "$1" link set lo up
	ip -n "$1" link set eth0 up
}
cat >/run/lease <<'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip address flush dev "$interface"
ip address add "$ip/$mask" dev "$interface"
echo "$ip $hostname $serverid $router"
END
chmod 755 /run/lease
# boot NAME: what the guest gets from DHCP, as address, host name, server and gateway.
boot() { ip netns exec "$1" busybox udhcpc -f -n -q -t 4 -T 1 -i eth0 -s /run/lease -O hostname 2>/dev/null || echo none; }
# get NAME PATH: what the guest reads from the metadata server.
get() { ip netns exec "$1" curl -sf --max-time 10 "http://10.1.1.1/latest/$2" || echo "curl: $?"; }
# password NAME WHAT: what the password server answers the guest.
password() { ip netns exec "$1" curl -sf --max-time 10 -H "DomU_Request: $2" http://10.1.1.1:8080 || echo "curl: $?"; }

# drop KIND JSON: what the management server does; prints what it would see.
drop() {
	file=$1.json.$(cat /proc/sys/kernel/random/uuid)
	echo "$2" >"$cache/$file"
	/opt/cloud/bin/update_config.py "$file" || echo "exit status $?"
}
# entry IP MAC HOST [true]: a lease, or its removal
entry() {
	drop vm_dhcp_entry "{\"host_name\":\"$3\",\"mac_address\":\"$2\",\"ipv4_address\":\"$1\",\"default_gateway\":\"10.1.1.1\",\"default_entry\":true,\"remove\":${4:-false},\"ipv6_duid\":\"00:03:00:01:$2\",\"type\":\"dhcpentry\"}"
}
# data IP ID HOST TEXT: metadata and user data
data() {
	drop vm_metadata "{\"vm_ip_address\":\"$1\",\"vm_metadata\":[[\"userdata\",\"user-data\",\"$(printf %s "$4" | base64 -w0)\"],[\"metadata\",\"local-hostname\",\"$3\"],[\"metadata\",\"vm-id\",\"$2\"],[\"metadata\",\"instance-id\",\"$2\"],[\"metadata\",\"public-keys\",null]],\"type\":\"vmdata\"}"
}
secret() { drop vm_password "{\"ip_address\":\"$1\",\"password\":\"$2\",\"type\":\"vmpassword\"}"; }
# resolve NAME HOST: the address that the guest gets for a host name
resolve() { ip netns exec "$1" busybox nslookup "$2" 10.1.1.1 2>/dev/null | sed -n 's/^Address.*: \(10[.0-9]*\)$/\1/p' | tail -n 1; }
active() { systemctl is-active "$@" || true; }
# who PORT: the programs that listen on it
who() { ss -Hlntup "sport = $1" | sed 's/.*users:(("\([^"]*\)".*/\1/' | sort -u | paste -sd' '; }

say "A router as it was"
"$here/standins/install.sh"
cat >$cache/cmd_line.json <<'END'
{"type":"cmdline","cmd_line":{"template":"domP","name":"r-412-VM","eth2ip":"203.0.113.24","eth2mask":"255.255.255.0",
"gateway":"203.0.113.1","eth0ip":"10.1.1.1","eth0mask":"255.255.255.0","domain":"cs7cloud.internal","cidrsize":"24",
"dhcprange":"10.1.1.1","eth1ip":"169.254.88.17","eth1mask":"255.255.0.0","type":"router","dns1":"192.0.2.53"}}
END
/opt/cloud/bin/update_config.py cmd_line.json | show
guest web 02:00:4c:5f:00:01
guest db 02:00:4c:5f:00:02
entry 10.1.1.34 02:00:4c:5f:00:01 web-1
data 10.1.1.34 id-web web-1 'web boots'
secret 10.1.1.34 taken
entry 10.1.1.35 02:00:4c:5f:00:02 db-1
data 10.1.1.35 id-db db-1 'db boots'
password web send_my_password >/dev/null || true
promise "dnsmasq serves DHCP" dnsmasq "$(who 67)"
promise "Apache metadata" apache2 "$(who 80)"
promise "a script passwords" passwd_server_i "$(who 8080)"
promise "a guest boots" "10.1.1.34 web-1 10.1.1.1 10.1.1.1" "$(boot web)"
promise "and the other" "10.1.1.35 db-1 10.1.1.1 10.1.1.1" "$(boot db)"
promise "it reads its user data" "web boots" "$(get web user-data)"
promise "and its metadata" "id-web" "$(get web meta-data/instance-id)"
promise "and its password" "taken" "$(password web send_my_password)"
password web saved_password >/dev/null
secret 10.1.1.35 waiting


say "An installation that fails"
install() { dpkg -i "$here/vragent-cloudstack.deb" >"$log" 2>&1; }
old_way() {
	[ "$(who 67) $(who 80) $(who 8080)" = "dnsmasq apache2 passwd_server_i" ] &&
		[ "$(systemctl is-enabled apache2 2>/dev/null)" != masked ] && ! grep -q vragent /opt/cloud/bin/update_config.py
}
dpkg -i "$here/vragent.deb" >"$log" 2>&1 || show <"$log"
cp /etc/cloudstack/dhcpentry.json /run/bag
sed -i 's/02:00:4c:5f:00:02/none/' /etc/cloudstack/dhcpentry.json
promise "a databag that cannot be served" 1 "$(exit_status install)"
promise "is named" 1 "$(grep -c 'vm_dhcp_entry.json.10.1.1.35 cannot be served: mac_address: is "none"' "$log")"
promise "and the old way stays in force" 0 "$(exit_status old_way)"
promise "as status says" 1 "$(vragent status | grep -c "the router's own scripts are in force")"
promise "for the guest too" "10.1.1.34 web-1 10.1.1.1 10.1.1.1" "$(boot web)"
promise "and nothing of it is left in the agent" 0 "$(vragent vms -o json | grep -c 10.1.1.34)"
cp /run/bag /etc/cloudstack/dhcpentry.json
dpkg-divert --local --quiet --no-rename --add --divert /opt/cloud/bin/elsewhere /opt/cloud/bin/vr_cfg.sh
promise "so does a diversion of somebody else" 1 "$(exit_status dpkg --configure vragent-cloudstack)"
promise "which leaves the old way in force as well" 0 "$(exit_status within 5 old_way)"
promise "with user data" "web boots" "$(get web user-data)"
promise "and the guest's address" "10.1.1.34 web-1 10.1.1.1 10.1.1.1" "$(boot web)"
dpkg-divert --local --quiet --no-rename --remove /opt/cloud/bin/vr_cfg.sh

say "Taken over"
# A script that had been started before, and reads its file when ours are in the place already.
mkfifo $cache/vm_dhcp_entry.json.late
/opt/cloud/bin/update_config.py vm_dhcp_entry.json.late false >/dev/null &
script=$!
dpkg --configure vragent-cloudstack >"$log" 2>&1 &
installation=$!
diverted() { grep -q vragent-cloudstack /opt/cloud/bin/vr_cfg.sh; }
within 30 diverted || show <"$log"
echo '{"host_name":"late-1","mac_address":"02:00:4c:5f:00:08","ipv4_address":"10.1.1.40","default_gateway":"10.1.1.1","default_entry":true,"remove":false,"type":"dhcpentry"}' \
	>$cache/vm_dhcp_entry.json.late
wait $script || true
wait $installation || show <"$log"
guest late 02:00:4c:5f:00:08
grep '^Taken over' "$log" | show
promise "the package is installed" ii "$(dpkg-query -W -f '${db:Status-Abbrev}' vragent-cloudstack | tr -d ' ')"
promise "Apache is masked" masked "$(systemctl is-enabled apache2 2>/dev/null)"
promise "and stopped" inactive "$(active apache2)"
promise "so is the password server" inactive "$(active cloud-password-server@10.1.1.1)"
promise "and the script lies beside ours" 0 "$(exit_status grep -q standin /opt/cloud/bin/vr_cfg.sh.cloudstack)"
new_way() { [ "$(who 67) $(who 80) $(who 8080) $(who 53)" = "vragent vragent vragent dnsmasq" ]; }
promise "vragent serves, dnsmasq answers names alone" 0 "$(exit_status within 5 new_way)"
promise "and TFTP" dnsmasq "$(who 69)"
promise "it knows the data server" 10.1.1.1 "$(resolve web data-server)"
promise "the guest keeps its address" "10.1.1.34 web-1 10.1.1.1 10.1.1.1" "$(boot web)"
promise "and the other" "10.1.1.35 db-1 10.1.1.1 10.1.1.1" "$(boot db)"
promise "and one that a script that still ran told of" "10.1.1.40 late-1 10.1.1.1 10.1.1.1" "$(boot late)"
promise "its user data" "web boots" "$(get web user-data)"
promise "its metadata" "id-web" "$(get web meta-data/instance-id)"
promise "a password that was taken stays taken" saved_password "$(password web send_my_password)"
promise "one that was not waits" waiting "$(password db send_my_password)"
promise "and lies in no file that would bring it back" "" "$(find $cache -name 'passwords-*')"
promise "the unit that keeps files runs" active "$(active vragent-cloudstack)"
# exposed UNIT LIMIT: yes, or how much it is exposed
exposed() {
	systemd-analyze security "$1" |
		awk -v limit="$2" '/Overall exposure/ {for (i = 1; i <= NF; i++) if ($i ~ /^[0-9.]+$/) print ($i <= limit ? "yes" : $i)}'
}
promise "exposed no more than 0.7" yes "$(exposed vragent-cloudstack.service 0.7)"
promise "and the one that puts back what was replaced 1.2" yes "$(exposed vragent-cloudstack-enter.service 1.2)"

say "What the management server changes"
# healthy IP MAC HOST: whether the server's health checks find the guest.
healthy() { echo "$*" | /root/health_checks/dhcp_check.py && echo "$*" | /root/health_checks/dns_check.py; }
bag() { grep -qF "$2" "/etc/cloudstack/$1.json"; }
not() { ! "$@"; }
guest new 02:00:4c:5f:00:03
python_ran() { grep -c standin /var/log/cloud.log; }
before=$(python_ran)
promise "a new VM" "" "$(entry 10.1.1.36 02:00:4c:5f:00:03 new-1; data 10.1.1.36 id-new new-1 'new boots'; secret 10.1.1.36 fresh)"
promise "boots" "10.1.1.36 new-1 10.1.1.1 10.1.1.1" "$(boot new)"
promise "with its user data" "new boots" "$(get new user-data)"
promise "without Python" "$before" "$(python_ran)"
promise "the health checks find it" 0 "$(exit_status within 5 healthy 10.1.1.36 02:00:4c:5f:00:03 new-1)"
promise "the databags know it" 0 "$(exit_status within 5 bag dhcpentry 02:00:4c:5f:00:03)"
promise "with its user data" 0 "$(exit_status within 5 bag vmdata "$(printf 'new boots' | base64)")"
named() { [ "$(resolve web new-1)" = 10.1.1.36 ]; }
promise "dnsmasq its name" 0 "$(exit_status within 5 named)"
promise "a VM that is removed" "" "$(entry 10.1.1.35 02:00:4c:5f:00:02 db-1 true)"
promise "gets no address" none "$(boot db)"
promise "and leaves the databags" 0 "$(exit_status within 5 not bag dhcpentry 02:00:4c:5f:00:02)"
promise "its address goes to another" "" "$(entry 10.1.1.35 02:00:4c:5f:00:04 other-1; data 10.1.1.35 id-other other-1 'other boots')"
guest other 02:00:4c:5f:00:04
promise "which boots" "10.1.1.35 other-1 10.1.1.1 10.1.1.1" "$(boot other)"
promise "with its own user data" "other boots" "$(get other user-data)"
promise "and no password of the one before" saved_password "$(password other send_my_password)"

say "An aggregated file"
cfg=$cache/VR-$(cat /proc/sys/kernel/random/uuid).cfg
{
	echo '#Apache CloudStack Virtual Router Config File'
	printf '<version>\n1.0\n</version>\n'
	part() { printf '<file>\n%s\n%s\n</file>\n<script>\n/opt/cloud/bin/update_config.py %s\n</script>\n' "$cache/$1" "$2" "$1"; }
	part vm_dhcp_entry.json.a1 '{"host_name":"agg-1","mac_address":"02:00:4c:5f:00:07","ipv4_address":"10.1.1.38","default_gateway":"10.1.1.1","default_entry":true,"remove":false,"type":"dhcpentry"}'
	part firewall_rules.json.a2 '{"type":"firewallrules"}'
	part vm_metadata.json.a3 '{"vm_ip_address":"10.1.1.38","vm_metadata":[["userdata","user-data","YWdncmVnYXRlZA=="]],"type":"vmdata"}'
} >"$cfg"
guest agg 02:00:4c:5f:00:07
promise "is taken in" 0 "$(exit_status /opt/cloud/bin/vr_cfg.sh -c "$cfg")"
promise "the guest in it boots" "10.1.1.38 agg-1 10.1.1.1 10.1.1.1" "$(boot agg)"
promise "with its user data" aggregated "$(get agg user-data)"
promise "what is theirs went to the original" 1 "$(grep -c 'standin.*update_config.py firewall_rules.json.a2' /var/log/cloud.log)"
promise "and the file is archived" 0 "$(exit_status ls "$cache/processed/$(basename "$cfg").gz")"

say "What the originals do beside it"
ip address add 10.1.1.99/24 dev eth0
promise "a file of theirs goes to them" "" "$(drop firewall_rules '{"type":"firewallrules"}')"
promise "with all that they do at each" 0 "$(ip -br address show eth0 | grep -c 10.1.1.99)"
promise "also one that both need" "" "$(drop ip_associations '{"type":"ips","ip_address":[{"public_ip":"203.0.113.25","netmask":"255.255.255.0","add":true,"source_nat":false,"nic_dev_id":2,"nw_type":"Public"}]}')"
promise "which adds the address" 1 "$(ip -br address show eth2 | grep -c 203.0.113.25)"
/opt/cloud/bin/configure.py cmd_line.json
promise "everything is written anew" 0 "$(exit_status grep -q dhcp-range /etc/dnsmasq.d/cloud.conf)"
promise "and vragent serves" 0 "$(exit_status within 5 new_way)"
echo '127.0.0.1 nobody' >/etc/hosts
: >/etc/dhcphosts.txt
promise "what they write over is written again" 0 "$(exit_status within 5 healthy 10.1.1.36 02:00:4c:5f:00:03 new-1)"
echo '{"id":"dhcpentry"}' >/etc/cloudstack/dhcpentry.json
promise "in the databags too" 0 "$(exit_status within 5 bag dhcpentry 02:00:4c:5f:00:03)"
sed -i 's/^dhcp-range=.*/&\ndhcp-range=10.1.1.200,10.1.1.210/' /etc/dnsmasq.d/cloud.conf
systemctl restart dnsmasq
promise "dnsmasq restarted with other ranges" 0 "$(exit_status within 5 new_way)"
systemctl stop vragent dnsmasq
systemctl start dnsmasq
systemctl start vragent
promise "dnsmasq first, then vragent" 0 "$(exit_status within 5 new_way)"
systemctl stop vragent dnsmasq
systemctl start vragent
systemctl start dnsmasq
promise "vragent first, then dnsmasq" 0 "$(exit_status within 5 new_way)"
promise "a guest boots" "10.1.1.36 new-1 10.1.1.1 10.1.1.1" "$(boot new)"

say "A live patch"
"$here/standins/install.sh" --patch 2
patched() { grep -q 'release 2' "/opt/cloud/bin/$1.cloudstack" && grep -q vragent-cloudstack "/opt/cloud/bin/$1"; }
promise "the new update_config.py is the original now" 0 "$(exit_status within 10 patched update_config.py)"
promise "and the new vr_cfg.sh" 0 "$(exit_status within 10 patched vr_cfg.sh)"
promise "status says so" 2 "$(vragent status | grep -c 'was replaced .* ago (once)')"
promise "a file of theirs goes to the new one" "" "$(drop firewall_rules '{"type":"firewallrules"}')"
promise "indeed" 1 "$(grep -c 'standin 2: update_config.py firewall_rules' /var/log/cloud.log)"
promise "a file of ours does not" "" "$(data 10.1.1.36 id-new new-1 'new boots again')"
promise "and is in force" "new boots again" "$(get new user-data)"
cp /opt/cloud/bin/update_config.py.cloudstack /run/again
sed -i 's/release 2/release 3/' /run/again
cat /run/again >/opt/cloud/bin/update_config.py
patched3() { grep -q 'release 3' /opt/cloud/bin/update_config.py.cloudstack && grep -q vragent-cloudstack /opt/cloud/bin/update_config.py; }
promise "one written over ours in place too" 0 "$(exit_status within 10 patched3)"
promise "and the package's program is what it was" "" "$(dpkg -V vragent-cloudstack)"
mkdir -p /run/patch/etc/systemd/system
sed 's/Stand-in/New stand-in/' "$here/standins/systemd/cloud-password-server@.service" >/run/patch/etc/systemd/system/cloud-password-server@.service
tar -C /run/patch -c etc/systemd/system/cloud-password-server@.service | tar -C / -x
unit_back() { [ "$(readlink /etc/systemd/system/cloud-password-server@.service)" = /dev/null ] && grep -q New /etc/systemd/system/cloud-password-server@.service.cloudstack; }
promise "a unit that is masked too" 0 "$(exit_status within 10 unit_back)"
systemctl stop vragent-cloudstack-enter.path
"$here/standins/install.sh" --patch 4
systemctl start vragent-cloudstack-enter.service
promise "and one that came while nobody looked, at boot" 1 "$(grep -c 'release 4' /opt/cloud/bin/vr_cfg.sh.cloudstack)"
systemctl start vragent-cloudstack-enter.path

say "Upgraded"
before=$(systemctl show -P MainPID vragent-cloudstack)
promise "dpkg -i" 0 "$(exit_status install)"
promise "the new one keeps files" 0 "$([ "$(systemctl show -P MainPID vragent-cloudstack)" != "$before" ] && exit_status systemctl is-active vragent-cloudstack)"
promise "and nothing was taken over twice" 0 "$(grep -c '^Taken over' "$log")"
promise "the guest boots" "10.1.1.36 new-1 10.1.1.1 10.1.1.1" "$(boot new)"

say "The files are not kept"
echo 'cloudstack: {databags: false}' >/etc/vragent/agent.d/60-local.yaml
systemctl restart vragent
promise "a VM more" "" "$(entry 10.1.1.37 02:00:4c:5f:00:05 more-1)"
promise "is in force" applied "$(vragent wait)"
not_kept() { journalctl --quiet --unit vragent-cloudstack --output cat | grep -q 'kept no longer'; }
promise "the unit says that it does not look at it" 0 "$(exit_status within 10 not_kept)"
echo '127.0.0.1 nobody' >/etc/hosts
rm /etc/vragent/agent.d/60-local.yaml
systemctl restart vragent
promise "until they are again" 0 "$(exit_status within 10 healthy 10.1.1.37 02:00:4c:5f:00:05 more-1)"

say "Given back"
promise "its address goes to a new VM" "" "$(entry 10.1.1.34 02:00:4c:5f:00:06 heir-1; data 10.1.1.34 id-heir heir-1 'heir boots')"
promise "a password waits" "" "$(secret 10.1.1.36 later)"
guest heir 02:00:4c:5f:00:06
dpkg -r vragent-cloudstack >"$log" 2>&1 || show <"$log"
promise "the package is removed" rc "$(dpkg-query -W -f '${db:Status-Abbrev}' vragent-cloudstack | tr -d ' ')"
promise "the old way is in force" 0 "$(exit_status within 10 old_way)"
promise "with the newest script" 1 "$(grep -c 'release 4' /opt/cloud/bin/update_config.py)"
promise "and nothing aside" "" "$(find /opt/cloud /etc/systemd -name '*.cloudstack')"
promise "and no diversion" "" "$(dpkg-divert --list '/opt/cloud/*')"
promise "vragent is there, and serves no guest" 0 "$(vragent vms -o json | grep -c 10.1.1.36)"
promise "the VM of today boots" "10.1.1.36 new-1 10.1.1.1 10.1.1.1" "$(boot new)"
promise "with its user data" "new boots again" "$(get new user-data)"
promise "and its password" later "$(password new send_my_password)"
promise "the new VM on an old address" "10.1.1.34 heir-1 10.1.1.1 10.1.1.1" "$(boot heir)"
promise "reads its own user data" "heir boots" "$(get heir user-data)"
promise "and gets no password of the one before" saved_password "$(password heir send_my_password)"
promise "one that was removed gets no address" none "$(boot db)"
promise "a change goes the old way" "" "$(data 10.1.1.36 id-new new-1 'old way')"
promise "and is in force" "old way" "$(get new user-data)"

say "Installed again, and purged"
promise "dpkg -i" 0 "$(exit_status install)"
promise "the new way is in force" 0 "$(exit_status within 5 new_way)"
promise "with what the old one knew" "old way" "$(get new user-data)"
promise "and its password" later "$(password new send_my_password)"
dpkg -P vragent-cloudstack >"$log" 2>&1 || show <"$log"
promise "the old way is in force" 0 "$(exit_status within 10 old_way)"
promise "nothing of it is left" "" "$(find /etc /opt /run /usr /var -xdev -name '*vragent-cloudstack*' ! -name '*.install'; find /etc/vragent/agent.d -type f)"

say "Into an image that is not running"
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
promise "dpkg -i" 0 "$(exit_status install)"
promise "changes nothing" 0 "$(exit_status old_way)"
rm /usr/sbin/policy-rc.d
promise "but enables what takes over at boot" "enabled enabled enabled" "$(systemctl is-enabled vragent-cloudstack vragent-cloudstack-enter.service vragent-cloudstack-enter.path | paste -sd' ')"
promise "which it does" 0 "$(exit_status systemctl start vragent-cloudstack)"
promise "and the new way is in force" 0 "$(exit_status within 5 new_way)"
promise "for the guest too" "10.1.1.36 new-1 10.1.1.1 10.1.1.1" "$(boot new)"

[ "$broken" -eq 0 ] || { cat "$log"; tail -n 40 /var/log/cloud.log; vragent status; journalctl --quiet --lines 120 --output cat; } | show
verdict
