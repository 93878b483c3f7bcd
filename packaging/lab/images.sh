#!/bin/sh
# Builds the trees that the lab's machines start from, each unless it is there already:
# images.sh CACHE
#
#   CACHE/base    Debian with systemd as init, and sshd
#   CACHE/router  what a CloudStack system VM has besides, its own scripts (stand-ins) among it
#   CACHE/guest   cloud-init and four DHCP clients
#
# A tree is made anew when what it is made of changed. The first run takes minutes and downloads some
# 250 MB from the mirror that this machine's apt uses, or from $LAB_MIRROR; exit status 77 where that is
# out of reach.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=$1
suite=bookworm
standins=$here/../cloudstack/standins

base='systemd systemd-sysv dbus iproute2 procps openssh-server ca-certificates less'
router='python3 dnsmasq apache2 acl curl keepalived etcd-server etcd-client'
guest='cloud-init cloud-guest-utils ifupdown isc-dhcp-client udhcpc dhcpcd-base sudo curl wget'

# Mounts and processes of the building end with it.
if [ "${LAB_IMAGES:-}" != inside ]; then
	mkdir -p "$cache"
	LAB_IMAGES=inside exec flock "$cache/lock" unshare --mount --pid --fork --kill-child --mount-proc "$0" "$@"
fi

mirror=${LAB_MIRROR:-$(apt-get indextargets --format '$(CODENAME) $(REPO_URI)' 2>/dev/null | sed -n "s/^$suite //p" | head -n 1)}
mirror=${mirror:-http://deb.debian.org/debian}
mirror=${mirror%/}

# made_of TREE: what identifies the tree.
made_of() {
	{
		echo "$mirror"
		for part in base on_base "$1"; do
			sed -n "/^$part=/p; /^$part() /,/^}/p; /^make_$part() /,/^}/p" "$0"
		done
		[ "$1" != router ] || find "$here/router" "$standins" -type f -exec sha256sum {} + | sed 's/ .*//' | sort
	} | sha256sum
}
is_there() { [ -d "$cache/$1" ] && [ "$(cat "$cache/$1.made-of" 2>/dev/null)" = "$(made_of "$1")" ]; }

# build TREE: has it made by the function of its name, in a folder that gets the final name last.
build() {
	! is_there "$1" || return 0
	wget -nv --tries 2 --timeout 20 -O /dev/null "$mirror/dists/$suite/Release" >"$cache/mirror.log" 2>&1 || {
		echo "lab: this machine cannot run it: the $1 tree has to be built, and there is no way to $mirror: $(tail -n 1 "$cache/mirror.log")" >&2
		exit 77
	}
	echo "building the lab's $1 tree in $cache"
	rm -rf "${cache:?}/$1" "$cache/$1.new" "$cache/$1.made-of"
	building=$1
	exec 3>&1 4>&2 >"$cache/$1.log" 2>&1
	"make_$1" "$cache/$1.new"
	: >"$cache/$1.new/etc/machine-id" # each machine gets one of its own
	exec >&3 2>&4
	building=
	mv "$cache/$1.new" "$cache/$1"
	made_of "$1" >"$cache/$1.made-of"
}
building=
# Whatever fails ends the script, and this says where.
tell() {
	[ -n "$building" ] || return 0
	tail -n 20 "$cache/$building.log" >&4
	echo "$0: the $building tree could not be built from $mirror; what was said is above and in $cache/$building.log" >&4
}
trap tell EXIT

make_base() {
	debootstrap --variant=minbase --include="$(echo "$base" | tr ' ' ,)" "$suite" "$1" "$mirror"
	chroot "$1" apt-get clean
	rm -f "$1/etc/resolv.conf" "$1/etc/hostname"
}

# on_base TREE PACKAGE...: the base and these packages, of which none starts anything yet.
on_base() {
	tree=$1
	shift
	cp -a --reflink=auto "$cache/base" "$tree"
	cp -L /etc/resolv.conf "$tree/etc/"
	printf '#!/bin/sh\nexit 101\n' >"$tree/usr/sbin/policy-rc.d"
	chmod 755 "$tree/usr/sbin/policy-rc.d"
	mount -t proc proc "$tree/proc"
	chroot "$tree" env DEBIAN_FRONTEND=noninteractive \
		apt-get install -y --no-install-recommends "$@"
	chroot "$tree" apt-get clean
	umount "$tree/proc"
	rm "$tree/usr/sbin/policy-rc.d" "$tree/etc/resolv.conf"
}

make_router() {
	# shellcheck disable=SC2086 # a list of names
	on_base "$1" $router
	for service in apache2 dnsmasq keepalived etcd; do # scripts of the router start them
		chroot "$1" systemctl disable "$service"
	done
	"$standins/install.sh" "$1"
	install -m 755 "$here/router/early-config.sh" "$1/usr/local/sbin/early-config"
	install -m 644 "$here/router/early-config.service" "$1/etc/systemd/system/"
	chroot "$1" systemctl enable early-config cloud-postinit
	printf 'Port 3922\nPermitRootLogin prohibit-password\n' >"$1/etc/ssh/sshd_config.d/lab.conf"
	mkdir -p -m 700 "$1/root/.ssh"
}

make_guest() {
	# shellcheck disable=SC2086 # a list of names
	on_base "$1" $guest
	# As on an image for one cloud, whose firmware the lab does not have; with what CloudStack's manual
	# says for passwords that are reset; and quick.
	cat >"$1/etc/cloud/cloud.cfg.d/90_lab.cfg" <<-'CONFIG'
		datasource_list: [CloudStack]
		locale: C.UTF-8
		ssh_genkeytypes: [ed25519]
		cloud_config_modules: [locale, [set-passwords, always], timezone, runcmd]
	CONFIG
}

build base
build router
build guest
