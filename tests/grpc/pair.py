"""The same ctr, asked the same of Debian's containerd and of ours, in a namespace for each."""

import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests import images
from tests.containerd import Containerd
from tests.grpc.workshop import remove_place
from tests.harness import Lighterd, await_that, settled

PEER, OURS = "pairpeer", "pairours"
TIMEOUT_S = 60.0
_VARY = (
    (re.compile(rf"\b({PEER}|{OURS})\b"), "NAMESPACE"),
    (re.compile(r'time="[^"]*"'), 'time="T"'),
    (re.compile(r"\d{4}-\d\d-\d\d[ T][0-9:.]+( \+0000 UTC|Z)"), "TIME"),
    # The kernel begins at 300 again when it has given the last pid.
    (re.compile(r"\b\d+(?= +(CREATED|RUNNING|PAUSED|STOPPED)\b)|(?m:^)\d{3,}(?= )"), "N"),
    (re.compile(r"\b\d{4,}\b"), "N"),
    # The width of a column follows that of the numbers in it.
    (re.compile(r" +"), " "),
)


@dataclass(frozen=True)
class Said:
    """How one ctr ended: with numbers and times that differ from run to run taken out."""

    code: int
    out: str
    err: str


def heard(run: Callable[[], str]) -> str:
    """What ctr shows of an exec that ends at once, asked again when it is nothing: ctr gives up
    what it has not begun to read when the process has ended, at containerd too.
    """
    for _ in range(5):
        if said := run():
            return said
    return ""


class Pair:
    """Both daemons. `pair(words…)` asserts that ctr ends alike at both, and returns how."""

    def __init__(self, peer: Containerd, lighterd: Lighterd, fifos: Path) -> None:
        self.peer = peer
        self.lighterd = lighterd
        self.fifos = fifos
        lighterd.cgroups.add(f"/{OURS}")
        peer.ctr("--namespace", PEER, "images", "import", str(images.busybox_archive()))
        self.ours("images", "import", str(images.busybox_archive()))

    def argv(self, side: str, *words: str) -> list[str]:
        address = self.peer.address if side == PEER else self.lighterd.grpc_address
        return ["ctr", "--address", address, "--namespace", side, *words]

    def run(self, side: str, *words: str, data: bytes | None = None) -> Said:
        done = subprocess.run(
            self.argv(side, *words),
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        return Said(done.returncode, _plain(done.stdout), _plain(done.stderr))

    def ours(self, *words: str, data: bytes | None = None) -> Said:
        """At ours alone. Raises AssertionError when it fails."""
        said = self.run(OURS, *words, data=data)
        assert said.code == 0, f"ctr {' '.join(words)}: {said.err}"
        return said

    def __call__(self, *words: str, data: bytes | None = None) -> Said:
        theirs = self.run(PEER, *words, data=data)
        ours = self.run(OURS, *words, data=data)
        assert ours == theirs, f"ctr {' '.join(words)}\nours:   {ours}\ntheirs: {theirs}"
        return ours

    def drop_snapshot(self, key: str) -> None:
        """What ctr prepared for a container that it could not record, and left."""
        self.run(PEER, "snapshots", "rm", key)
        self.run(OURS, "snapshots", "rm", key)

    def run_detached(self, container: str, *words: str, flags: tuple[str, ...] = ()) -> Said:
        """`ctr run -d` whose FIFOs are the test's."""
        fifos = ("--fifo-dir", str(self.fifos))
        return self("run", "-d", *fifos, *flags, images.REFERENCE, container, *words)

    def await_status(self, container: str, status: str) -> None:
        """Until both list the task so."""
        for side in (PEER, OURS):
            await_that(
                lambda side=side: f"{container} N {status}" in self.run(side, "tasks", "ls").out,
                30,
                f"{container} is {status} at {side}",
            )

    def bundles(self, container: str) -> Mapping[str, Path]:
        """The directories that the runtimes were given."""
        return {
            PEER: self.peer.base / "s/io.containerd.runtime.v2.task" / PEER / container,
            OURS: self.lighterd.state / "tasks" / OURS / container,
        }

    def close(self) -> None:
        """No container is left at the peer, and nothing of one at ours."""
        for side in (PEER, OURS):
            for container in self.run(side, "containers", "ls", "-q").out.split():
                self.run(side, "tasks", "rm", "-f", container)
                self.run(side, "containers", "rm", container)
        settled(self.lighterd.left_of_containers)
        # The directories that a namespace's containers were in stay for containerd.
        remove_place(self.lighterd, f"/{PEER}")
        remove_place(self.lighterd, f"/{OURS}")


def _plain(output: bytes) -> str:
    text = output.decode()
    for pattern, word in _VARY:
        text = pattern.sub(word, text)
    return "\n".join(line.rstrip() for line in text.splitlines())
