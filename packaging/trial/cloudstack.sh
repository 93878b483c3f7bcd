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

# drop KIND JSON [false]: what the management server does; prints what it would see.
drops=0
drop() {
	drops=$((drops + 1))
	echo "$2" >"$cache/$1.json.$drops"
	/opt/cloud/bin/update_config.py "$1.json.$drops" || echo "exit status $?"
}
# entry IP MAC HOST [KEY VALUE]
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


say "Taken over"
dpkg -i "$here/vragent.deb" >"$log" 2>&1 || show <"$log"
dpkg -i "$here/vragent-cloudstack.deb" >"$log" 2>&1 || show <"$log"
grep '^Taken over' "$log" | show
promise "the package is installed" ii "$(dpkg-query -W -f '${db:Status-Abbrev}' vragent-cloudstack | tr -d ' ')"
promise "Apache is masked" masked "$(systemctl is-enabled apache2 2>/dev/null)"
promise "and stopped" inactive "$(active apache2)"
promise "so is the password server" inactive "$(active cloud-password-server@10.1.1.1)"
promise "and the script lies beside ours" 0 "$(exit_status grep -q standin /opt/cloud/bin/vr_cfg.sh.cloudstack)"
vragent_serves() { [ "$(who 67) $(who 80) $(who 8080)" = "vragent vragent vragent" ]; }
promise "vragent serves" 0 "$(exit_status within 5 vragent_serves)"
promise "dnsmasq answers names alone" dnsmasq "$(who 53)"
promise "and knows the data server" 10.1.1.1 "$(resolve web data-server)"
promise "the guest keeps its address" "10.1.1.34 web-1 10.1.1.1 10.1.1.1" "$(boot web)"
promise "and the other" "10.1.1.35 db-1 10.1.1.1 10.1.1.1" "$(boot db)"
promise "its user data" "web boots" "$(get web user-data)"
promise "its metadata" "id-web" "$(get web meta-data/instance-id)"
promise "a password that was taken stays taken" saved_password "$(password web send_my_password)"
promise "one that was not waits" waiting "$(password db send_my_password)"

[ "$broken" -eq 0 ] || { cat "$log"; tail -n 40 /var/log/cloud.log; vragent status; journalctl --quiet --lines 120 --output cat; } | show
verdict
