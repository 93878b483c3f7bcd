#!/bin/sh
# Prints the version of these sources in a form that Debian sorts: the newest tag v* without its
# v, after it TAG+N.COMMIT with the number of commits since, and before any tag 0.1.0~N.COMMIT.
set -eu
cd "$(dirname "$0")/.."

next=0.1.0
if ! commit=$(git rev-parse --short=12 HEAD 2>/dev/null); then
	echo "$next~unknown"
elif tag=$(git describe --tags --exact-match --match 'v[0-9]*' 2>/dev/null); then
	echo "${tag#v}"
elif tag=$(git describe --tags --abbrev=0 --match 'v[0-9]*' 2>/dev/null); then
	echo "${tag#v}+$(git rev-list --count "$tag..HEAD").$commit"
else
	echo "$next~$(git rev-list --count HEAD).$commit"
fi
