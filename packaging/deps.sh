#!/bin/sh
# Installs the Debian packages that the tests or the demo need and that are missing here.
#
#   packaging/deps.sh demo      what make demo needs
#   packaging/deps.sh test      what make test needs as well: the real clients
#   packaging/deps.sh bench     what make bench needs as well: the peers, and who loads them
#   packaging/deps.sh trial     what make trial needs
#   packaging/deps.sh lab       what make lab needs
#   packaging/deps.sh packages  what make packages-check needs
#
# No service is started, and none is enabled that comes with a package installed here: these are
# programs for tests, and this may be somebody's own machine.
set -eu

demo='iproute2 util-linux curl openssh-client isc-dhcp-client busybox udhcpc'
test="$demo
	gcc libc6-dev git
	dhcpcd-base systemd network-manager dbus cloud-init cloud-guest-utils
	wget rsync openssh-server acl vim-tiny tar tcpdump procps
	python3 python3-cs python3-libcloud slapd openssl zsh fish
	isc-dhcp-relay dnsmasq-base kea-admin qemu-system-x86 ipxe-qemu
	prometheus chromium etcd-server etcd-client keepalived nftables"
bench="$test
	wrk nginx-light apache2 kea-dhcp4-server isc-dhcp-server"
packages='lintian rpm cpio'
trial='lintian rpm systemd iproute2 procps libcap2-bin man-db acl
	dnsmasq apache2 python3 curl busybox'
lab='debootstrap debian-archive-keyring systemd-container iproute2 procps openssh-client busybox'

# Service files of those packages that their installation would enable for the next boot.
services='ssh.service sshd.service slapd.service NetworkManager.service
	NetworkManager-dispatcher.service NetworkManager-wait-online.service
	isc-dhcp-relay.service prometheus.service prometheus-node-exporter.service
	prometheus-node-exporter-apt.timer prometheus-node-exporter-smartmon.timer
	prometheus-node-exporter-nvme.timer prometheus-node-exporter-mellanox-hca-temp.timer
	prometheus-node-exporter-ipmitool-sensor.timer
	etcd.service keepalived.service machines.target
	nginx.service dnsmasq.service apache2.service apache-htcacheclean.service
	kea-dhcp4-server.service isc-dhcp-server.service'

case "${1:-}" in
demo) wanted=$demo ;;
test) wanted=$test ;;
bench) wanted=$bench ;;
trial) wanted=$trial ;;
lab) wanted=$lab ;;
packages) wanted=$packages ;;
*)
	echo "usage: $0 demo|test|bench|trial|lab|packages" >&2
	exit 64
	;;
esac

has_service() { [ -e "/lib/systemd/system/$1" ] || [ -e "/etc/init.d/${1%.service}" ]; }

installed() {
	[ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null)" = 'ii ' ]
}

missing=
for package in $wanted; do
	installed "$package" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
	echo "$0: this is no Debian. Install what these packages hold:$missing" >&2
	exit 1
fi
as_root=
if [ "$(id -u)" -ne 0 ]; then
	as_root='sudo -n'
	if ! $as_root true 2>/dev/null; then
		echo "$0: neither root nor allowed to become it. Run: sudo apt-get install --no-install-recommends$missing" >&2
		exit 1
	fi
fi

log=$(mktemp)
policy=/usr/sbin/policy-rc.d # asked by Debian before a package starts its service
made_policy=
tidy() {
	rm -f "$log"
	[ -z "$made_policy" ] || $as_root rm -f "$policy"
}
trap tidy EXIT
trap 'exit 130' INT TERM
if [ ! -e "$policy" ]; then
	printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
	made_policy=yes
	$as_root chmod 755 "$policy"
fi

before=
for service in $services; do
	! has_service "$service" || before="$before $service"
done
case " $missing " in
*' cloud-init '*) # it would set up this machine anew at its next boot
	$as_root mkdir -p /etc/cloud
	$as_root touch /etc/cloud/cloud-init.disabled
	;;
esac

echo "installing:$missing"
apt() {
	$as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 "$@" >>"$log" 2>&1
}
# shellcheck disable=SC2086 # a list of names
if ! apt install -y --no-install-recommends $missing && ! { apt update && apt install -y --no-install-recommends $missing; }; then
	tail -n 20 "$log" >&2
	echo "$0: apt-get could not install$missing; what it said is above" >&2
	exit 1
fi

for service in $services; do
	case " $before " in *" $service "*) continue ;; esac
	! has_service "$service" || $as_root systemctl disable "$service" >/dev/null 2>&1 || true
done
