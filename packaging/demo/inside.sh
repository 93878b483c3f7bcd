#!/bin/sh
# The demo itself, in namespaces that run.sh made: inside.sh VRAGENT FOLDER
set -eu

agent=$1
dir=$2
here=$(cd "$(dirname "$0")" && pwd)
drop=$dir/drop
config=$dir/agent.yaml
# shellcheck source=packaging/promise.sh
. "$here/../promise.sh"
vragent() { "$agent" "$@" --config "$config"; }

# guest N NAME MAC: a machine on the network, which sleeps until commands are run in it.
guest() {
	unshare --net --mount sleep infinity &
	echo $! >"$dir/guest-$1"
	within 5 another_namespace "$!"
	ip link add "port$1" type veth peer name eth0 address "$3" netns "$!"
	ip link set "port$1" master lan up
	in_guest "$1" ip link set lo up
	in_guest "$1" ip link set eth0 up
}
another_namespace() { [ "$(readlink "/proc/$1/ns/net")" != "$(readlink /proc/self/ns/net)" ]; }
in_guest() {
	pid=$(cat "$dir/guest-$1")
	shift
	nsenter --net --mount --target "$pid" -- "$@"
}
fetch() { in_guest "$1" curl --silent --show-error --max-time 3 "http://10.1.1.1$2"; }
status_of() { in_guest "$@" --output /dev/null --write-out '%{http_code}'; }

# prepare_vm NAME ADDRESS MAC writes the files of a VM to a folder that is not read yet.
prepare_vm() {
	mkdir -p "$dir/new/$1"
	cat >"$dir/new/$1/vm.yaml" <<-EOF
		hostname: $1
		nics:
		  - network: guest-1
		    mac: $3
		    ipv4: $2
	EOF
	cat >"$dir/new/$1/meta-data.yaml" <<-EOF
		service-offering: small
		availability-zone: zone-1
		public-keys: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDemoKeyOf$1 ops@example.org
		color: blue
	EOF
	printf '#cloud-config\nhostname: %s\n' "$1" >"$dir/new/$1/user-data"
}

say "1. A router with the guest gateway 10.1.1.1, and two guests, in namespaces of their own"
mount -t tmpfs tmpfs /run
ip link set lo up
ip link add lan address 02:00:00:00:00:01 type bridge
ip address add 10.1.1.1/24 dev lan
ip link set lan up
ip link add eth2 type veth peer name upstream
ip address add 203.0.113.7/24 dev eth2
ip link set eth2 up
guest 1 web-1 02:00:4c:5f:00:01
guest 2 web-2 02:00:4c:5f:00:02
echo "  the router's public address is 203.0.113.7, on eth2"

say "2. The agent starts, with nothing in its drop directory"
cat >"$config" <<EOF
drop_dir: $drop
state_dir: $dir/state
api: {socket: $dir/api.sock}
EOF
"$agent" run --config "$config" >"$dir/log" 2>&1 &
daemon=$!
answers() { kill -0 "$daemon" 2>/dev/null && vragent status >/dev/null 2>&1; }
if ! within 10 answers; then
	echo "  the agent does not answer; its log:"
	show <"$dir/log"
	exit 1
fi
mkdir -p "$drop/networks" "$drop/vms"
promise "it answers its command line" 0 "$(exit_status vragent status)"

say "3. Files are dropped: a network, and two VMs"
cat >"$drop/networks/guest-1.yaml" <<EOF
interface: lan
gateway: 10.1.1.1/24
domain: cs1.internal
EOF
prepare_vm web-1 10.1.1.34 02:00:4c:5f:00:01
prepare_vm web-2 10.1.1.35 02:00:4c:5f:00:02
echo "  web-1 as a folder that is moved in whole; web-2 file by file, as a plain scp writes them"
mv "$dir/new/web-1" "$drop/vms/web-1"
mkdir "$drop/vms/web-2"
for file in user-data meta-data.yaml vm.yaml; do
	cat "$dir/new/web-2/$file" >"$drop/vms/web-2/$file"
done
status=0
vragent wait >"$dir/out" || status=$?
promise "vragent wait: all is applied" "0 applied" "$status $(head -n 1 "$dir/out")"
vragent vms | show

say "4. Each guest asks for a lease with a client of its own"
# What dhclient runs with the lease: it puts the address on the device, as its own script does.
cat >"$dir/configure" <<'EOF'
#!/bin/sh
case "${reason:-$1}" in
BOUND | bound)
	echo "address ${new_ip_address:-${ip:-}} host name ${new_host_name:-${hostname:-}} server identifier ${new_dhcp_server_identifier:-${serverid:-}}" >"$LEASE"
	ip address add "${new_ip_address:-${ip:-}}/24" dev eth0
	ip route add default via "${new_routers:-${router:-}}"
	;;
esac
EOF
chmod +x "$dir/configure"
# A copy, since a confined dhclient (AppArmor, by path) may not read this folder.
cp "$(command -v dhclient || echo /sbin/dhclient)" "$dir/dhclient"
lease() { # GUEST COMMAND...
	n=$1
	shift
	in_guest "$n" env LEASE="$dir/lease-$n" timeout 20 "$@" >"$dir/client-$n" 2>&1 || true
	cat "$dir/lease-$n" 2>/dev/null || { echo "no lease"; show <"$dir/client-$n" >&2; }
}
lease_1=$(lease 1 "$dir/dhclient" -4 -1 -v -e LEASE="$dir/lease-1" -sf "$dir/configure" -lf "$dir/dhclient.leases" -pf "$dir/dhclient.pid" eth0)
lease_2=$(lease 2 udhcpc -f -q -n -i eth0 -x hostname:any -O hostname -s "$dir/configure")
echo "  web-1, dhclient: $lease_1"
echo "  web-2, udhcpc:   $lease_2"
promise "web-1 has its address and name, from the gateway" \
	"address 10.1.1.34 host name web-1 server identifier 10.1.1.1" "$lease_1"
promise "web-2 has its address and name, from the gateway" \
	"address 10.1.1.35 host name web-2 server identifier 10.1.1.1" "$lease_2"

say "5. Each guest reads its user data and its metadata from the server that gave the lease"
for n in 1 2; do
	echo "  web-$n: curl http://10.1.1.1/latest/user-data"
	fetch "$n" /latest/user-data >"$dir/out" || true
	show <"$dir/out"
	promise "that is what was dropped for web-$n" "$(cat "$drop/vms/web-$n/user-data")" "$(cat "$dir/out")"
done
names=$(fetch 1 /latest/meta-data/)
echo "  what web-1 reads under http://10.1.1.1/latest/meta-data/:"
for name in $names; do
	printf '%-20s %s\n' "$name" "$(fetch 1 "/latest/meta-data/$name")" | cut -c 1-76 | show
done
promise "web-1: its host name" web-1 "$(fetch 1 /latest/meta-data/local-hostname)"
promise "web-1: the router's public address" 203.0.113.7 "$(fetch 1 /latest/meta-data/public-ipv4)"
promise "web-1: a name of its own, color" blue "$(fetch 1 /latest/meta-data/color)"

say "6. A file changes, and is served without a restart"
times=
for n in 1 2 3 4 5; do
	echo "release $n" >"$drop/vms/web-1/user-data.tmp"
	start=$(date +%s%N)
	mv "$drop/vms/web-1/user-data.tmp" "$drop/vms/web-1/user-data"
	renewed() { [ "$(fetch 1 /latest/user-data)" = "release $n" ]; }
	within 10 renewed || true
	times="$times $((($(date +%s%N) - start) / 1000000))"
done
promise "web-1 reads the new user data" "release 5" "$(fetch 1 /latest/user-data)"
# shellcheck disable=SC2086 # a list of numbers
median=$(printf '%s\n' $times | sort -n | sed -n 3p)
echo "  milliseconds from the rename to the new answer, the time of curl included:$times"
promise "the median is 100 ms or less" yes "$([ "$median" -le 100 ] && echo yes || echo "no, $median ms")"

say "7. web-2 tries to read what is web-1's"
promise "by a header that names web-1: it gets its own" "$(cat "$drop/vms/web-2/user-data")" \
	"$(in_guest 2 curl --silent --max-time 3 --header 'X-Forwarded-For: 10.1.1.34' http://10.1.1.1/latest/user-data)"
in_guest 2 ip address add 10.1.1.36/24 dev eth0
promise "from an address that is nobody's: 404" 404 \
	"$(status_of 2 curl --silent --max-time 3 --interface 10.1.1.36 http://10.1.1.1/latest/user-data)"
in_guest 2 ip address add 10.1.1.34/24 dev eth0
promise "with web-1's address put on its own NIC: no answer, since those go to web-1's NIC" 000 \
	"$(status_of 2 curl --silent --max-time 3 --interface 10.1.1.34 http://10.1.1.1/latest/user-data || true)"
in_guest 2 ip address del 10.1.1.34/24 dev eth0

say "8. A file that is wrong changes nothing, and the reason is told"
prepare_vm web-3 10.9.9.9 02:00:4c:5f:00:03
mv "$dir/new/web-3" "$drop/vms/web-3"
status=0
vragent wait vms/web-3 >"$dir/out" || status=$?
show <"$dir/out"
promise "vragent wait: rejected" "1 rejected" "$status $(head -n 1 "$dir/out")"
sed 's/ipv4: .*/ipv4: 10.1.1.35/' "$drop/vms/web-1/vm.yaml" >"$dir/taken"
cat "$dir/taken" >"$drop/vms/web-1/vm.yaml"
status=0
vragent wait vms/web-1 >"$dir/out" || status=$?
show <"$dir/out"
promise "web-1 with web-2's address is rejected as well" "1 rejected" "$status $(head -n 1 "$dir/out")"
promise "and web-1 is served on as before" "release 5" "$(fetch 1 /latest/user-data)"
promise "vragent status tells it by its exit status" 1 "$(exit_status vragent status)"

say "9. Corrected, it takes effect by itself; deleted, it is gone"
sed 's/ipv4: .*/ipv4: 10.1.1.34/' "$dir/taken" >"$drop/vms/web-1/vm.yaml"
rm -r "$drop/vms/web-3"
status=0
vragent wait >"$dir/out" || status=$?
promise "vragent wait: all is applied" "0 applied" "$status $(head -n 1 "$dir/out")"
rm -r "$drop/vms/web-2"
vragent wait >/dev/null || true
promise "web-2 is deleted, and knocks in vain" 404 "$(status_of 2 curl --silent --max-time 3 --interface 10.1.1.35 http://10.1.1.1/latest/user-data)"

kill -TERM "$daemon"
status=0
wait "$daemon" || status=$?
promise "the agent stops cleanly" 0 "$status"

verdict
