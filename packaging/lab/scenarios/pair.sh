# shellcheck shell=sh
# A redundant pair of routers with keepalived between them and etcd outside of it: one fails, etcd
# fails, and all comes back. Files are dropped in vragent's own form, on both.

machine store router
plug store eth0 0e:00:a9:fe:00:05 control
ip -n store address add 169.254.0.5/16 dev eth0
ip -n store link set eth0 up
cat >"$lab/store/disk/etc/default/etcd" <<-'CONFIG'
	ETCD_LISTEN_CLIENT_URLS=http://169.254.0.5:2379
	ETCD_ADVERTISE_CLIENT_URLS=http://169.254.0.5:2379
CONFIG
rm "$lab/store/disk/etc/systemd/system/multi-user.target.wants/cloud-postinit.service"
chroot "$lab/store/disk" systemctl --quiet enable etcd
stored() { inside store etcdctl --endpoints http://169.254.0.5:2379 "$@"; }

# twin NAME NUMBER: one of the pair, 10.1.1.NUMBER.
twin() {
	router "$1" "169.254.0.1$2" "type=router eth0ip=10.1.1.$2 eth0mask=255.255.255.0 eth1ip=169.254.0.1$2 eth1mask=255.255.0.0"
	plug "$1" eth0 "02:00:0a:01:01:0$2" guests
	plug "$1" eth1 "0e:00:a9:fe:00:1$2" control
	rm "$lab/$1/disk/etc/systemd/system/multi-user.target.wants/cloud-postinit.service"
	with_packages "$1" 'vragent_*.deb'
	echo 'shared_state: {etcd: {endpoints: ["http://169.254.0.5:2379"]}}' >"$lab/$1/disk/etc/vragent/agent.d/50-lab.yaml"
	cat >"$lab/$1/disk/etc/keepalived/keepalived.conf" <<-'CONFIG'
		global_defs {
			vrrp_version 3
		}
		vrrp_instance guests {
			state BACKUP
			nopreempt
			interface eth0
			virtual_router_id 51
			priority 100
			advert_int 1
			virtual_ipaddress {
				10.1.1.1/24 dev eth0
			}
		}
	CONFIG
	chroot "$lab/$1/disk" systemctl --quiet enable keepalived
}
gateway() { inside "$1" ip -4 -o address show dev eth0 | grep -c '10\.1\.1\.1/24'; }
in_step() { inside "$1" vragent status | grep -o 'in step with the other router\|out of reach' || true; }
# acknowledged NAME prints how often the guest's client was told to keep its address.
acknowledged() { inside "$1" journalctl --quiet --output cat --grep "^DHCPACK of $(address_of "$1" | sed 's,/.*,,') from 10.1.1.1$" | wc -l; }
renewed() { [ "$(acknowledged "$1")" -gt "$2" ]; }

mkdir -p "$lab/drop/networks" "$lab/drop/vms/web-1"
cat >"$lab/drop/networks/guest-1.yaml" <<-'FILE'
	interface: eth0
	gateway: 10.1.1.1/24
	lease_time: 16s
	pool: {from: 10.1.1.200, to: 10.1.1.210}
FILE
cat >"$lab/drop/vms/web-1/vm.yaml" <<-FILE
	hostname: web-1
	nics: [{network: guest-1, mac: "$(mac 50)", ipv4: 10.1.1.50}]
FILE
echo "public-keys: $(cat "$dir/user.pub")" >"$lab/drop/vms/web-1/meta-data.yaml"
printf '#!/bin/sh\necho ran >/root/ran\n' >"$lab/drop/vms/web-1/user-data"
echo 'only once' >"$lab/drop/vms/web-1/password"

say "A pair of routers boots, and etcd beside it"
twin r-1 2
twin r-2 3
boot store r-1
works "the first becomes master" within 30 eval '[ "$(gateway r-1)" = 1 ]'
boot r-2
works "it takes the files" put r-1 "$lab/drop"
works "and so does the second" put r-2 "$lab/drop"
becomes "the first serves" "vragent vragent vragent" serving r-1
promise "the second is silent" "" "$(serving r-2)"
becomes "they are in step through etcd" "in step with the other router" in_step r-1
becomes "both" "in step with the other router" in_step r-2

say "Guests of theirs: a VM, and one whose address is from the pool"
guest web-1 dhclient "$(mac 50)" guests
guest desk-1 dhclient "$(mac 77)" guests
touch "$lab/desk-1/disk/etc/cloud/cloud-init.disabled"
printf 'auto eth0\niface eth0 inet dhcp\n' >"$lab/desk-1/disk/etc/network/interfaces.d/eth0"
boot web-1 desk-1
promise "the VM has its address" 10.1.1.50/24 "$(address_of web-1)"
promise "and cloud-init is done" "done" "$(cloud_init web-1)"
promise "it took its password" web-1 "$(with_password 'only once' r-1 10.1.1.50 hostname)"
pooled=$(address_of desk-1)
promise "the other has one from the pool" 10.1.1.20 "${pooled%?/24}"
promise "no password is in etcd" 0 "$(stored get --prefix / | grep -c 'only once')"

say "The first router loses its power"
loop='n=0; while [ ! -e /tmp/stop ]; do
	[ "$(curl --silent --max-time 20 --retry 20 --retry-delay 1 --retry-all-errors http://10.1.1.1/latest/local-ipv4)" = 10.1.1.50 ] || echo wrong
	n=$((n + 1)); done; echo $n requests'
inside web-1 sh -c "$loop" >"$lab/loop" 2>&1 &
loop=$!
seen_web=$(acknowledged web-1)
seen_desk=$(acknowledged desk-1)
destroy r-1
works "the second becomes master" within 30 eval '[ "$(gateway r-2)" = 1 ]'
becomes "and serves" "vragent vragent vragent" serving r-2
works "the VM renews its lease, from the same server" within 30 renewed web-1 "$seen_web"
works "and so does the other one" within 30 renewed desk-1 "$seen_desk"
promise "whose address is the same" "$pooled" "$(address_of desk-1)"
inside web-1 touch /tmp/stop
wait "$loop"
promise "requests went on all the time" "" "$(grep -v '^[1-9][0-9]* requests$' "$lab/loop")"
promise "the password that was taken stays so" saved_password "$(password_server web-1)"

say "etcd stops"
inside store systemctl stop etcd
becomes "the router says so" "out of reach" in_step r-2
works "a VM boots all the same" renews web-1
promise "and reads its metadata" 10.1.1.50 "$(fetch web-1 /latest/local-ipv4)"
echo 'second one' | inside r-2 tee /var/lib/vragent/drop/vms/web-1/password >"$lab/said"
works "a new password is taken in" inside r-2 vragent wait
promise "but has to wait" bad_request "$(password_server web-1)"
guest desk-2 dhclient "$(mac 78)" guests
ip -n desk-2 link set eth0 up
promise "no address of the pool is given away" 1 "$(exit_status ip netns exec desk-2 busybox udhcpc -f -n -q -t 3 -T 1 -s /bin/true -i eth0)"
inside store systemctl start etcd
becomes "it is back, and so is everything" "in step with the other router" in_step r-2
promise "the password" "second one" "$(password_server web-1)"
promise "and the pool" 0 "$(exit_status ip netns exec desk-2 busybox udhcpc -f -n -q -t 5 -T 1 -s /bin/true -i eth0)"

say "The first router comes back"
echo 'second one' >"$lab/drop/vms/web-1/password"
twin r-1 2
boot r-1
works "it takes the files" put r-1 "$lab/drop"
becomes "it is in step" "in step with the other router" in_step r-1
promise "and silent" "" "$(serving r-1)"
promise "it knows that the address is taken" 1 "$(inside r-1 vragent leases | grep -c "$(mac 77)")"
inside web-1 curl --silent --header 'DomU_Request: saved_password' http://10.1.1.1:8080/ >"$lab/said"
inside r-2 systemctl stop keepalived
becomes "the second hands over, and it serves" "vragent vragent vragent" serving r-1
becomes "the second is silent" "" serving r-2
works "a guest gets its address from it" renews web-1
promise "the password that was taken before it came stays so" saved_password "$(password_server web-1)"
for router in r-1 r-2; do promise "no service of $router has failed" "" "$(failed $router)"; done
