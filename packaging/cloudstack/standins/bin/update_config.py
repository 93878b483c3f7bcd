#!/usr/bin/python3
"""Stand-in: takes one dropped file in. update_config.py NAME [false]"""
import os
import sys
import traceback

import configure
import cs
import merge


def main(argv):
    if len(argv) not in (2, 3):
        print("usage: update_config.py NAME [false]")
        return 1
    name, keep = argv[1], len(argv) < 3 or argv[2] != "false"
    cs.log("update_config.py " + " ".join(argv[1:]))
    if not name.startswith("cmd_line.json") and os.path.exists(os.path.join(merge.CACHE, "cmd_line.json")):
        merge.take("cmd_line.json", True)
    if not os.path.exists(os.path.join(merge.CACHE, name)):
        if os.path.exists(os.path.join(merge.CACHE, "processed", name + ".gz")):
            return 0
        print("%s cannot be read" % name)
        return 1
    merge.take(name, keep)
    if "DEFER_CONFIG" in os.environ and ("vm_dhcp_entry.json" in name or "vm_metadata.json" in name):
        return 0
    return configure.main(argv)


try:
    sys.exit(main(sys.argv))
except Exception:
    traceback.print_exc(file=sys.stdout)
    sys.exit(1)
