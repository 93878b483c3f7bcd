"""Stand-in: what the parts of configure share."""
import os
import subprocess
import time

VERSION = "1"


def log(text):
    with open("/var/log/cloud.log", "a") as f:
        f.write("%s standin %s: %s\n" % (time.strftime("%Y-%m-%d %H:%M:%S"), VERSION, text))


def run(*command):
    """Runs a program; that it fails is logged and no more, as in the original."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        log("%s: %d: %s" % (" ".join(command), done.returncode, done.stdout.strip()))
    return done


def write(path, text):
    """Writes a file where it says something else, and tells whether it did."""
    try:
        with open(path) as f:
            if f.read() == text:
                return False
    except OSError:
        pass
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        f.write(text)
    return True
