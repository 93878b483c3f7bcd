#!/bin/sh
# Puts the stand-ins on a router: install.sh [ROOT]
# With --patch VERSION before it, unpacks /opt/cloud alone as a release of that name, by tar over
# what lies there, as CloudStack's live patch does.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
version=
if [ "${1:-}" = --patch ]; then
	version=$2
	shift 2
fi
root=${1:-}

tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
mkdir -p "$tree/opt/cloud"
cp -R "$here/bin" "$tree/opt/cloud/bin"
chmod 755 "$tree"/opt/cloud/bin/*.py "$tree"/opt/cloud/bin/*.sh
if [ -n "$version" ]; then
	sed -i "s/^VERSION = .*/VERSION = \"$version\"/" "$tree/opt/cloud/bin/cs/__init__.py"
	for script in update_config.py vr_cfg.sh; do echo "# release $version" >>"$tree/opt/cloud/bin/$script"; done
	tar -C "$tree" -c opt | tar -C "$root/" -x --no-same-owner
	exit
fi
mkdir -p "$tree/etc/systemd/system" "$tree/root/health_checks"
cp "$here"/systemd/* "$tree/etc/systemd/system/"
cp "$here"/health_checks/* "$tree/root/health_checks/"
cp "$here/dnsmasq.conf" "$tree/etc/"
chmod 755 "$tree"/root/health_checks/*
mkdir -p "$tree/etc/cloudstack" "$tree/var/cache/cloud/processed" "$tree/opt/tftpboot" "$tree/etc/dnsmasq.d"
chmod 755 "$tree"
tar -C "$tree" -c etc/cloudstack etc/dnsmasq.d etc/dnsmasq.conf etc/systemd/system opt root/health_checks var/cache/cloud |
	tar -C "$root/" -x --no-same-owner --keep-directory-symlink
: >"$root/etc/dhcphosts.txt"
: >"$root/etc/dhcpopts.txt"
: >"$root/etc/dnsmasq-resolv.conf"
# Apache listens on guest addresses alone.
[ ! -d "$root/etc/apache2" ] || {
	: >"$root/etc/apache2/ports.conf"
	rm -f "$root/etc/apache2/sites-enabled/000-default.conf"
	ln -sf ../mods-available/rewrite.load "$root/etc/apache2/mods-enabled/rewrite.load"
}
