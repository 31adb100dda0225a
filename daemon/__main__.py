"""lighterd: the entry.

    lighterd [--config FILE] [--root DIR] [--state DIR] [--address SOCKET] [--log-level LEVEL]
    lighterd config default|dump|check

Called by the name `containerd` it is the same, and says its version in containerd's form.

Errors are one line on standard error and exit status 1, wrong usage is status 2. With --daemon the
process detaches before anything that costs time or holds a descriptor is loaded.
"""

import gc
import os
import sys
import time
from collections.abc import Sequence

from lighter.daemon.entry import later
from lighter.daemon.entry.options import SPAWNER, Installed, plain
from lighter.daemon.entry.program import reason_of, start

# systemd starts a manager that has ended again at once, without a limit. One that cannot start, for
# a mistake in its configuration, then takes no more of a core than a start in a second does.
PAUSE_S = 1.0
STARTING_S = 10.0  # who ended later than this had started


def main(spawner: Sequence[str] = SPAWNER, cores: str = "", ctl: str = "") -> None:
    """Entry of `lighterd`. `spawner`: the command line that starts this version's spawner.

    `cores`: the directory of the installed versions, for a launcher that may choose another.
    `ctl`: this version's own.
    """
    begun = time.monotonic()
    supervised = "NOTIFY_SOCKET" in os.environ
    # A start makes much and drops little. The collector is turned on when all is there.
    gc.disable()
    later.put_off()
    installed = Installed(tuple(spawner), cores, ctl)
    called = "containerd" if os.path.basename(sys.argv[0]) == "containerd" else "lighterd"
    try:
        # A shell that completes words runs the program without any: click answers that.
        completes = f"_{called.upper()}_COMPLETE" in os.environ
        given = None if completes else plain(sys.argv[1:], installed)
        if given is not None:
            start(given, daemon=False)
            return
        from lighter.daemon.entry.clicked import cli

        cli(prog_name=called, obj=installed)
    except Exception as err:
        sys.stderr.write(f"lighterd: {reason_of(err)}\n")
        sys.stderr.flush()
        if supervised and time.monotonic() - begun < STARTING_S:
            time.sleep(PAUSE_S)
        sys.exit(1)


if __name__ == "__main__":
    main()
