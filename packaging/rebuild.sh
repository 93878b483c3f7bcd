#!/bin/sh
# Builds all packages a second time, from a copy of these sources in another folder, at another time,
# in another time zone, with another umask and nothing from the compiler's cache, and compares them
# byte by byte with those in dist/: packaging/rebuild.sh VARIABLE=VALUE... as make has them
set -eu
cd "$(dirname "$0")/.."
. packaging/promise.sh

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
trap 'exit 130' INT TERM
mkdir "$copy/sources"
tar --exclude=./.git --exclude=./bin --exclude=./dist -cf - . | (umask 077 && tar --no-same-permissions -xmf - -C "$copy/sources")

(umask 077 && TZ=Pacific/Kiritimati make --no-print-directory -C "$copy/sources" packages "$@" GO="env GOCACHE=$copy/cache go") >"$copy/log" 2>&1 || {
	show <"$copy/log" >&2
	exit 1
}

say "Built twice"
for again in "$copy"/sources/dist/*.deb "$copy"/sources/dist/*.rpm; do
	name=$(basename "$again")
	promise "$name" "$(sha256sum <"$again")" "$(sha256sum <"dist/$name")"
done
verdict
