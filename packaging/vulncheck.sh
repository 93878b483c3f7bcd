#!/bin/sh
# Looks for known vulnerabilities in what vragent is built of and calls, by Go's database. The exit
# status is 0 for none, 3 where there are some, and 2 where the database could not be reached, so that
# nothing is known: that is no pass. GOVULNDB names another database than https://vuln.go.dev.
set -eu
cd "$(dirname "$0")/.."

err=$(mktemp)
trap 'rm -f "$err"' EXIT
status=0
go tool -modfile=packaging/tools/go.mod govulncheck -db "${GOVULNDB:-https://vuln.go.dev}" ./... 2>"$err" || status=$?
cat "$err" >&2
if grep -q 'fetching vulnerabilities' "$err"; then
	echo "$0: NOT CHECKED: ${GOVULNDB:-https://vuln.go.dev} cannot be reached from here; run this on a machine that reaches it, or name a copy of the database in GOVULNDB" >&2
	exit 2
fi
exit "$status"
