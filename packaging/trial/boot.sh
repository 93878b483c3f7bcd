#!/bin/sh
# In the namespaces that run.sh made: puts the copy of the machine together and boots it.
# boot.sh FOLDER SHARED
set -eu

mount -t tmpfs tmpfs "$1"
root=$1/root
mkdir "$root" "$1/upper" "$1/work"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
for device in null zero full random urandom tty; do
	touch "$root/dev/$device"
	mount --bind "/dev/$device" "$root/dev/$device"
done
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mkdir "$root/trial"
mount --bind "$2" "$root/trial"

: >"$root/etc/machine-id"           # a machine of its own
rm -f "$root/usr/sbin/policy-rc.d"  # where packages start their services
cat >"$root/etc/systemd/system/trial.target" <<'EOF'
[Unit]
Description=Nothing but the trial of the package
DefaultDependencies=no
Requires=systemd-journald.service trial.service
EOF
cat >"$root/etc/systemd/system/trial.service" <<'EOF'
[Unit]
DefaultDependencies=no
After=systemd-journald.service
SuccessAction=exit
FailureAction=exit
[Service]
Type=oneshot
ExecStart=/bin/sh -c '/trial/inside.sh; echo $$? >/trial/status'
StandardOutput=file:/trial/out
StandardError=inherit
EOF
exec env -i container=vragent-trial PATH=/usr/sbin:/usr/bin:/sbin:/bin \
	chroot "$root" /lib/systemd/systemd --system --unit=trial.target --log-target=journal --show-status=no
