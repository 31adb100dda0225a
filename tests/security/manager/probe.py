"""What a process in a container sees of its confinement, as JSON on standard output.

Run by the host's Python inside a container that has the host's /usr mounted (see test_confined). It
looks, and tries what must fail with arguments that change nothing should it succeed.
"""

import errno
import json
import os
import sys


def attempt(act):
    try:
        act()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    return "ok"


def opened(path, flags):
    return attempt(lambda: os.close(os.open(path, flags | os.O_NONBLOCK)))


def content(path):
    """ "nothing" for what is masked, whatever the way."""
    try:
        if os.path.isdir(path):
            return "something" if os.listdir(path) else "nothing"
        with open(path, "rb") as file:
            return "something" if file.read(1) else "nothing"
    except FileNotFoundError:
        return "absent"
    except OSError:
        return "nothing"


def status():
    with open("/proc/self/status") as file:
        pairs = (line.rstrip().partition(":\t") for line in file)
        return {name: value for name, _, value in pairs}


def look(masked, readonly):
    descriptors = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            descriptors[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            pass  # the one that the listing itself had open
    with open("/proc/self/mountinfo") as file:
        mounts = [line.split() for line in file]
    return {
        "status": status(),
        "descriptors": descriptors,
        "environment": dict(os.environ),
        "masked": {path: content(path) for path in masked},
        "readonly": {path: opened(path, os.O_WRONLY) for path in readonly},
        "mounts": [(fields[3], fields[4]) for fields in mounts],
        "cgroup writes": {
            os.path.join(where, "release_agent"): opened(
                os.path.join(where, "release_agent"), os.O_WRONLY
            )
            for where, _, files in os.walk("/sys/fs/cgroup")
            if "release_agent" in files
        },
        "disk": attempt(lambda: os.mknod("/disk", 0o60600, os.makedev(8, 0)))
        + " "
        + opened("/disk", os.O_RDONLY),
    }


if __name__ == "__main__":
    print(json.dumps(look(*json.loads(sys.argv[1]))))
