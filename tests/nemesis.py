"""What breaks things around clients at work: processes die or stop, disks fill, registries fail.

Each act ends what it began, so that the next finds a whole system; clients see what is between.
Acts come in rounds, each round all of them in a random order: none is missed by chance.
"""

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.harness import Lighterd
from tests.processes import with_title
from tests.registries import Reply, Request, Scripted, SmallImage, error

STOPPED_S = 3.0
# Between an act and the word of it, where a random moment hardly ever falls.
POINTS = [
    *("event.create", "event.start", "event.exit-committed", "event.closed", "start.done"),
    *("create.shim-forked", "create.done", "exec.asked", "delete.row-gone", "containers.row-gone"),
    *("pull.documents", "ingest.adopted", "pull.named", "gc.rows-deleted"),
]
MOODS = ("unavailable", "cut", "slow")


@contextmanager
def small_disk(directory: Path, size: str) -> Iterator[None]:
    """A file system of its own at the directory, which `fill` can fill."""
    directory.mkdir()
    options = ("-o", f"size={size},mode=700", "lighter-test")
    subprocess.run(["mount", "-t", "tmpfs", *options, str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def fill(path: Path) -> None:
    """Write to the file until the disk is full."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with contextlib.suppress(OSError):
        while True:
            os.write(fd, bytes(4096))
    os.close(fd)


class MoodyRegistry(Scripted):
    """Has images, and gives them as its `mood` is; "" is well."""

    def __init__(self) -> None:
        super().__init__()
        self.mood = ""

    def serve(self, image: SmallImage, repository: str, *tags: str) -> None:
        super().serve(image, repository, *tags)
        for path, answer in self.routes.items():
            if not isinstance(answer, list) and not getattr(answer, "is_moody", False):
                self.routes[path] = self._moody(answer)

    def _moody(self, answer: Reply | Callable[[Request], Reply]) -> Callable[[Request], Reply]:
        def reply(request: Request) -> Reply:
            whole = answer(request) if callable(answer) else answer
            match self.mood:
                case "unavailable":
                    return error(503, "UNAVAILABLE", "in a bad mood")
                case "cut":
                    return replace(whole, stop_at=len(whole.body) // 2, end="reset")
                case "slow":
                    return replace(whole, pace=(max(1, len(whole.body) // 10), 0.1))
            return whole

        reply.is_moody = True
        return reply


@dataclass(frozen=True)
class Harm:
    """What a container may have died of: its own shim's fault, or with "" one that meets all."""

    container: str
    began: float
    ended: float


class Nemesis:
    """`acts` counts what was done, `harms` is what processes may have died of. Raises
    AssertionError when a manager does not come back.
    """

    def __init__(self, lighterd: Lighterd, registry: MoodyRegistry, choose: random.Random) -> None:
        self._lighterd = lighterd
        self._registry = registry
        self._choose = choose
        self._over = threading.Event()  # never set: a rhythm
        self.acts: Counter[str] = Counter()
        self.harms: list[Harm] = []

    def run(self, until: float) -> None:
        acts = [
            *(self.kill_manager, self.kill_spawner, self.kill_shim, self.kill_both),
            *(self.kill_at_a_point, self.kill_at_a_point),
            *(self.stop_manager, self.stop_spawner, self.stop_shim),
            *(self.fill_disk, self.spoil_registry),
        ]
        while time.monotonic() < until:
            self._choose.shuffle(acts)
            for act in acts:
                if time.monotonic() > until:
                    return
                self._wait(0.1, 1.0)
                act()

    def _wait(self, least_s: float, most_s: float) -> None:
        """The rhythm of the faults; nothing waits for it."""
        self._over.wait(self._choose.uniform(least_s, most_s))

    def kill_manager(self) -> None:
        self._lighterd.kill9()
        self._lighterd.start()
        self.acts["manager killed"] += 1

    def kill_at_a_point(self) -> None:
        """A manager that ends at some point of a call, or of its start."""
        self._lighterd.kill9()
        self._lighterd.launch(FAULT=f"{self._choose.choice(POINTS)}:abort")
        with contextlib.suppress(AssertionError):  # it need not get as far as that
            self._lighterd.wait_ready()
        assert self._lighterd.process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._lighterd.process.wait(STOPPED_S)
            self.acts["manager killed at a point"] += 1
        self._lighterd.kill9()
        self._lighterd.start()

    def kill_both(self) -> None:
        """The manager, and a shim while there is none."""
        self._lighterd.kill9()
        self.kill_shim()
        self._lighterd.start()

    def kill_spawner(self) -> None:
        for pid in self._spawners():
            self.acts["spawner killed"] += _signal(pid, signal.SIGKILL)

    def kill_shim(self) -> None:
        if pids := self._lighterd.shims():
            pid = self._choose.choice(pids)
            with self._harming(container_of(pid)):
                self.acts["shim killed"] += _signal(pid, signal.SIGKILL)

    def stop_manager(self) -> None:
        self._stop(self._lighterd.pid)
        self.acts["manager stopped"] += 1

    def stop_spawner(self) -> None:
        for pid in self._spawners():
            self.acts["spawner stopped"] += self._stop(pid)

    def _spawners(self) -> list[int]:
        return with_title(f"lighter-spawner --instance {self._lighterd.instance}")

    def stop_shim(self) -> None:
        if pids := self._lighterd.shims():
            pid = self._choose.choice(pids)
            with self._harming(container_of(pid)):
                self.acts["shim stopped"] += self._stop(pid)

    @contextmanager
    def _harming(self, container: str) -> Iterator[None]:
        began = time.time()
        try:
            yield
        finally:
            self.harms.append(Harm(container, began, time.time()))

    def _stop(self, pid: int) -> bool:
        if not _signal(pid, signal.SIGSTOP):
            return False
        self._over.wait(STOPPED_S)
        _signal(pid, signal.SIGCONT)  # unless a manager has given it up and killed it
        return True

    def fill_disk(self) -> None:
        """For a second or two, in which the manager may be killed; with space it comes back."""
        with self._harming(""):
            self._fill_disk()
        self.acts["disk full"] += 1

    def _fill_disk(self) -> None:
        filler = self._lighterd.root / "filler"
        killed = self._choose.random() < 0.5
        fill(filler)
        try:
            self._wait(0.5, 2.0)
            fill(filler)  # what was given back meanwhile
            if killed:
                self._lighterd.kill9()
        finally:
            filler.unlink()
        if killed:
            self._lighterd.start()

    def spoil_registry(self) -> None:
        self._registry.mood = self._choose.choice(MOODS)
        try:
            self._wait(1.0, 2.0)
        finally:
            self._registry.mood = ""
        self.acts["registry faults"] += 1


def container_of(shim: int) -> str:
    """By its title; "" for one that has ended."""
    try:
        words = Path(f"/proc/{shim}/cmdline").read_bytes().replace(b"\0", b" ").decode().split()
    except OSError:
        return ""
    return words[words.index("--id") + 1] if "--id" in words else ""


def _signal(pid: int, signum: int) -> bool:
    """Whether there was such a process to send it to."""
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return False
    return True
