"""Makes what late tests need and early ones do not, beside them: systems and packages.

    python tests/prepare.py

All of it is kept in .cache by its content, and a test that does not find it makes it itself: so
this only saves time, where lint and unit tests leave a processor idle. What fails here is said
and left to the test, which will say it better. A SIGTERM ends it with what it has started.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

# Last on the path: the checkout's folder `daemon` hides no dependency's package.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from tests.packaging.rpms import ALIEN, ALIEN_PROTOCOLS, NEXT, built
from tests.systemd.tree import debian_tree
from tests.vm.disk import the_disk

NICE = 5  # whoever is waited for goes first
END_S = 20.0
POLL_S = 0.1


def main() -> None:
    os.setsid()
    os.nice(NICE)
    signal.signal(signal.SIGTERM, _end)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as output:
        # Those that mount something come first: tests look for mounts that nobody has undone.
        steps: dict[str, Callable[[], object]] = {
            "tree for systemd": debian_tree,
            "disk of the virtual machine": the_disk,
            "packages": partial(built, Path(output) / "own"),
            "newer packages": partial(built, Path(output) / "newer", NEXT),
            "packages of another protocol": partial(
                built, Path(output) / "alien", ALIEN, PROTOCOLS=ALIEN_PROTOCOLS
            ),
        }
        for what, make in steps.items():
            begun = time.monotonic()
            try:
                make()
            except Exception as error:
                sys.stderr.write(f"prepare {what}: {error}\n")
            else:
                sys.stderr.write(f"prepared {what} in {time.monotonic() - begun:.0f} s\n")


def _end(*_: object) -> None:
    """Let each of what runs undo its own (debootstrap has mounts), and end what does not."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    until = time.monotonic() + END_S
    try:
        while time.monotonic() < until:
            os.waitpid(-1, os.WNOHANG)
            time.sleep(POLL_S)
    except ChildProcessError:
        pass  # all have ended
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
