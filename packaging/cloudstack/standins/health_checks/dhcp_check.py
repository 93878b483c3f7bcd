#!/usr/bin/python3
"""Stand-in: prints the guests that /etc/dhcphosts.txt lacks. Standard input: lines IP MAC HOST."""
import sys

known = set()
with open("/etc/dhcphosts.txt") as f:
    for line in f:
        fields = line.strip().split(",")
        if len(fields) < 4:
            continue
        at = 2 if fields[1].startswith("set:") else 1
        known.add((fields[at], fields[0], fields[at + 1]))
missing = [line.strip() for line in sys.stdin if tuple(line.split()) not in known]
print("\n".join(missing), end="")
sys.exit(1 if missing else 0)
