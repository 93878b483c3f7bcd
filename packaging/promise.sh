# shellcheck shell=sh
# What the scripts that show something have in common: they promise, look, and count.

kept=0
broken=0

say() { printf '\n%s\n' "$*"; }
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
	say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
fi
show() { sed 's/^/    /'; }

# promise TEXT WANT GOT: says whether GOT is what was promised.
promise() {
	if [ "$2" = "$3" ]; then
		kept=$((kept + 1))
		echo "  ok  $1"
	else
		broken=$((broken + 1))
		echo "  NOT AS PROMISED  $1"
		printf 'wanted: %s\ngot:    %s\n' "$2" "$3" | show
	fi
}

# verdict says how many promises were kept; its exit status is 1 if one was not.
verdict() {
	say "$kept promises kept, $broken broken"
	[ "$broken" -eq 0 ]
}

# within SECONDS COMMAND...: tries the command until it succeeds.
within() {
	until=$(($(date +%s) + $1))
	shift
	until "$@"; do
		[ "$(date +%s)" -lt "$until" ] || return 1
		sleep 0.02
	done
}

# exit_status COMMAND...: prints what the command ends with.
exit_status() { "$@" >/dev/null 2>&1 && echo 0 || echo $?; }
