"""What `runc delete` does for a container that has ended, without starting runc for it.

What is left of it then is cgroups that are empty and a directory of one or two files. Removing them
takes a tenth of a millisecond; starting runc for it takes five. It is done here only where it is
that simple: another runtime's state, hooks to run, cgroups in use or with others below them are
left to the runtime, and what an order leaves to it.
"""

import os

from lighter.shim.cgroup import Cgroup
from lighter.shim.files import read_small

# In the state of a container for which a delete has no more to do. (A text that somebody chose
# could not look so: its quotes would be escaped.)
NOTHING_MORE = (b'"poststop":null', b'"intel_rdt_path":""')
# libcontainer's state, and the pipe that `runc start` opens, there until it has.
_FILES = frozenset(("state.json", "exec.fifo"))


def delete(directory: str, cgroup: Cgroup) -> bool:
    """Remove the state `directory` and the cgroups; False when the runtime has to do it.

    Some of it may be gone then, which the runtime takes as done.
    """
    try:
        names = os.listdir(directory)
        if "state.json" not in names or not _FILES.issuperset(names):
            return False
        state = read_small(directory + "/state.json")
        if not all(words in state for words in NOTHING_MORE) or not cgroup.remove():
            return False
        for name in names:
            os.unlink(f"{directory}/{name}")
        os.rmdir(directory)
    except OSError:
        return False
    return True
