#!/bin/sh
# Runs each fuzz target of the module for a time, one after the other: packaging/fuzz.sh 30s
set -eu
cd "$(dirname "$0")/.."

for package in $(go list ./...); do
	for target in $(go test -list '^Fuzz' "$package" | grep '^Fuzz' || true); do
		echo "== $package $target"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$1" "$package"
	done
done
