#!/bin/sh
# Looks into the packages in dist/, also those for other machines than this one: what is in them and
# whose it is, for which processor the program is, what they depend on, and what their scripts do with
# the arguments of dpkg and of rpm. packaging/inspect.sh VERSION
set -eu
cd "$(dirname "$0")/.."
. packaging/promise.sh

version=$1
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM

# same FILE: whether standard input is what the file has.
same() {
	cat >"$dir/got"
	diff -u "$1" "$dir/got" >"$dir/diff" && echo yes || cat "$dir/diff"
}

# elf FILE: the processor that a program is for, and whether it runs without a dynamic linker.
elf() {
	case "$(od -An -tx1 -N20 "$1" | tr -d ' \n')" in
	7f454c460201*3e00) printf amd64 ;;
	7f454c460201*b700) printf arm64 ;;
	*) printf 'neither amd64 nor arm64' ;;
	esac
	grep -q 'ld-linux' "$1" && echo ', dynamic' || echo ', static'
}

# program ARCH: what there is to say about the unpacked program.
program() {
	promise "the program is for $1" "$1, static" "$(elf "$dir/root/usr/bin/vragent")"
	promise "of this version" yes "$(grep -qaF "$version" "$dir/root/usr/bin/vragent" && echo yes)"
	promise "the unit starts it" /usr/bin/vragent "$(sed -n 's/^ExecStart=\([^ ]*\).*/\1/p' "$dir"/root/*lib/systemd/system/vragent.service "$dir"/root/usr/lib/systemd/system/vragent.service 2>/dev/null | head -n 1)"
	if [ "$(dpkg --print-architecture)" = "$1" ]; then
		promise "and runs here" "vragent $version" "$("$dir/root/usr/bin/vragent" version | head -n 1 | cut -d, -f1 | cut -d' ' -f1,2)"
	fi
}

# scripted SCRIPT ARGUMENT...: what the script calls, in order, on a system that runs systemd. It calls
# stand-ins that only note it, and is told that systemd runs wherever this is run.
mkdir "$dir/calls"
for command in systemctl systemd-sysusers systemd-tmpfiles deb-systemd-helper deb-systemd-invoke vragent-cloudstack rm; do
	printf '#!/bin/sh\necho "%s $*" >>"%s"\n' $command "$dir/called" >"$dir/calls/$command"
	chmod +x "$dir/calls/$command"
done
scripted() {
	sed 's:-d /run/systemd/system:-d /:; s:/usr/sbin/policy-rc\.d:/nonexistent:' "$1" >"$dir/script"
	shift
	: >"$dir/called"
	PATH="$dir/calls:$PATH" sh "$dir/script" "$@" && cat "$dir/called"
}

for arch in amd64 arm64; do
	deb=dist/vragent_${version}_$arch.deb
	say "$deb"
	rm -rf "$dir/root" "$dir/control"
	dpkg-deb -R "$deb" "$dir/root"
	mv "$dir/root/DEBIAN" "$dir/control"
	promise "holds what packaging/debian/contents lists" yes \
		"$(dpkg-deb -c "$deb" | awk '{sub(/^\./, "", $6); print $1, $2, $6}' | LC_ALL=C sort -k3 | same packaging/debian/contents)"
	program $arch
	promise "Architecture" $arch "$(dpkg-deb -f "$deb" Architecture)"
	promise "Version" "$version" "$(dpkg-deb -f "$deb" Version)"
	promise "Depends" systemd "$(dpkg-deb -f "$deb" Depends)"
	promise "conffiles" /etc/vragent/agent.yaml "$(cat "$dir/control/conffiles")"
	promise "checksums" 0 "$(cd "$dir/root" && exit_status md5sum -c "$dir/control/md5sums")"
	promise "installed: started" yes "$(scripted "$dir/control/postinst" configure '' | grep -qx 'deb-systemd-invoke start vragent.service' && echo yes)"
	promise "upgraded: restarted, and never stopped" "deb-systemd-invoke restart vragent.service" \
		"$({ scripted "$dir/control/prerm" upgrade 2; scripted "$dir/control/postrm" upgrade 2; scripted "$dir/control/postinst" configure 1; } | grep invoke)"
	promise "removed: stopped" "deb-systemd-invoke stop vragent.service" "$(scripted "$dir/control/prerm" remove)"
	promise "purged: nothing is left" "rm -rf /var/lib/vragent /etc/vragent" "$(scripted "$dir/control/postrm" purge | grep ^rm)"
done

for arch in amd64 arm64; do
	deb=dist/vragent-cloudstack_${version}_$arch.deb
	say "$deb"
	rm -rf "$dir/root" "$dir/control"
	dpkg-deb -R "$deb" "$dir/root"
	mv "$dir/root/DEBIAN" "$dir/control"
	promise "holds what packaging/cloudstack/contents lists" yes \
		"$(dpkg-deb -c "$deb" | awk '{sub(/^\./, "", $6); print $1, $2, $6 ($7 ? " " $7 " " $8 : "")}' | LC_ALL=C sort -k3 | same packaging/cloudstack/contents)"
	promise "the program is for $arch" "$arch, static" "$(elf "$dir/root/usr/bin/vragent-cloudstack")"
	promise "Architecture" $arch "$(dpkg-deb -f "$deb" Architecture)"
	promise "Depends" "vragent (= $version), systemd" "$(dpkg-deb -f "$deb" Depends)"
	promise "conffiles" none "$([ -e "$dir/control/conffiles" ] && cat "$dir/control/conffiles" || echo none)"
	promise "installed: taken over first, started then" "vragent-cloudstack enter,deb-systemd-invoke restart vragent-cloudstack.service vragent-cloudstack-enter.path" \
		"$(scripted "$dir/control/postinst" configure '' | grep -e ' enter$' -e ' restart ' | paste -sd,)"
	promise "upgraded: never given back" "" "$(scripted "$dir/control/prerm" upgrade 2)"
	promise "removed: given back" "vragent-cloudstack leave" "$(scripted "$dir/control/prerm" remove | grep leave)"
	promise "purged: nothing is left" "rm -rf /var/lib/vragent-cloudstack,rm -f /etc/vragent/agent.d/50-cloudstack.yaml /etc/vragent/agent.d/50-cloudstack.yaml.old" \
		"$(scripted "$dir/control/postrm" purge | grep ^rm | paste -sd,)"
done

for arch in amd64 arm64; do
	case $arch in amd64) machine=x86_64 ;; *) machine=aarch64 ;; esac
	rpm=dist/vragent-$version-1.$machine.rpm
	say "$rpm"
	query() { rpm -qp --nosignature "$@" "$rpm"; }
	rm -rf "$dir/root" "$dir/control"
	mkdir "$dir/root" "$dir/control"
	rpm2cpio "$rpm" | (cd "$dir/root" && cpio --quiet --no-absolute-filenames -idm) 2>"$dir/cpio.log"
	promise "holds what packaging/rpm/contents lists" yes \
		"$(query --qf '[%{FILEMODES:perms} %{FILEUSERNAME}/%{FILEGROUPNAME} %{FILENAMES} %{FILEFLAGS:fflags}\n]' | sed 's/ $//' | LC_ALL=C sort -k3 | same packaging/rpm/contents)"
	program $arch
	promise "Architecture" $machine "$(query --qf '%{ARCH}')"
	promise "Version" "$version-1" "$(query --qf '%{VERSION}-%{RELEASE}')"
	promise "Requires" systemd "$(query --requires | grep -v '^rpmlib(')"
	promise "digests" 0 "$(exit_status rpm -K --nosignature "$rpm")"
	for script in POSTIN PREUN POSTUN; do query --qf "%{$script}" >"$dir/control/$script"; done
	promise "installed: by the system's presets" yes "$(scripted "$dir/control/POSTIN" 1 | grep -qx 'systemctl --no-reload preset vragent.service' && echo yes)"
	promise "upgraded: restarted where it runs, and never stopped" "systemctl try-restart vragent.service" \
		"$({ scripted "$dir/control/POSTIN" 2; scripted "$dir/control/PREUN" 1; scripted "$dir/control/POSTUN" 1; } | grep -v -e daemon-reload -e ^systemd-)"
	promise "erased: stopped and disabled" "systemctl --no-reload disable --now vragent.service" "$(scripted "$dir/control/PREUN" 0)"
	promise "and nothing of it is left running" "rm -rf /run/vragent" "$(scripted "$dir/control/POSTUN" 0 | grep ^rm)"
done
verdict
