#!/usr/bin/python3
"""Stand-in: prints the guests that /etc/hosts lacks. Standard input: lines IP MAC HOST."""
import sys

with open("/etc/hosts") as f:
    lines = [line.split() for line in f]
missing = []
for line in sys.stdin:
    ip, _, host = line.split()
    if not any(ip in known and host in known for known in lines):
        missing.append(line.strip())
print("\n".join(missing), end="")
sys.exit(1 if missing else 0)
