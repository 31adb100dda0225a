"""Taking one measurement: a command's time, a process's memory, a batch four at a time."""

import os
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeVar

COMMAND_TIMEOUT_S = 600
LISTED = "are listed running (Lighter: from its database)"
STOPS = (signal.SIGINT, signal.SIGTERM)
_UNSTEADY = 0.5  # half of what may be the distance between quartiles, as a share of the median

_Side = TypeVar("_Side")


class CommandFailed(Exception):
    """A measured command did not do its work; a time taken from it would mean nothing."""


def run(argv: Sequence[str]) -> str:
    """Run to the end; its standard output. Raises CommandFailed with what it said."""
    done = subprocess.run(
        found(argv),
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        stdin=subprocess.DEVNULL,
        close_fds=False,  # lets Python use posix_spawn, whose cost does not grow with this process
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-500:]
        raise CommandFailed(f"{' '.join(argv)}: exit code {done.returncode}: {said}")
    return done.stdout


def found(argv: Sequence[str]) -> list[str]:
    """The same with the program's path: only then does Python use posix_spawn, for each alike."""
    return [_path(argv[0]), *argv[1:]]


@cache
def _path(program: str) -> str:
    return shutil.which(program) or program


def in_turn(sides: Sequence[_Side], turn: int) -> list[_Side]:
    """The same, but in each turn another one begins."""
    first = turn % len(sides) if sides else 0
    return [*sides[first:], *sides[:first]]


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def together(width: int, argvs: Iterable[Sequence[str]]) -> float:
    """Wall-clock seconds for all commands, `width` at a time."""
    with ThreadPoolExecutor(width) as pool:
        return seconds(lambda: list(pool.map(run, argvs)))


def drained_bytes(argv: Sequence[str]) -> int:
    """Run with stdout on a pipe that `wc -c` empties, as a shell would; the number of bytes."""
    with subprocess.Popen(
        found(argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as writer:
        count = subprocess.run(
            ["wc", "-c"], stdin=writer.stdout, capture_output=True, timeout=COMMAND_TIMEOUT_S
        )
        assert writer.stdout is not None and writer.stderr is not None
        writer.stdout.close()
        said = writer.stderr.read().decode(errors="replace")
    if writer.returncode:
        raise CommandFailed(f"{' '.join(argv)}: exit code {writer.returncode}: {said[-500:]}")
    return int(count.stdout)


def until(
    condition: Callable[[], bool], timeout_s: float, what: str, every_s: float = 0.005
) -> None:
    """Ask again and again. Raises CommandFailed after `timeout_s`."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise CommandFailed(f"not within {timeout_s} s: {what}")
        time.sleep(every_s)


def pss_kib(pid: int) -> int:
    """Proportional set size (proc_pid_smaps(5)): shared pages divided among their users."""
    return _field(Path(f"/proc/{pid}/smaps_rollup"), "Pss:")


def rss_kib(pid: int) -> int:
    return _field(Path(f"/proc/{pid}/status"), "VmRSS:")


def _field(file: Path, name: str) -> int:
    for line in file.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise CommandFailed(f"{file} has no {name}")


def titles() -> dict[int, str]:
    """Pid -> command line of every process here."""
    found = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                line = Path(entry.path, "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            found[int(entry.name)] = line.replace(b"\0", b" ").decode(errors="replace").strip()
    return found


@contextmanager
def undisturbed() -> Iterator[None]:
    """A signal to end comes when the block is over: what removes things is done to the end."""
    came: list[int] = []
    before = {each: signal.signal(each, lambda signum, _: came.append(signum)) for each in STOPS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        for signum in came[:1]:
            signal.raise_signal(signum)


def mounts_below(directory: Path) -> list[str]:
    """Mount points in it or of its files, the last mounted first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in reversed(lines) if str(directory) in line]


@dataclass
class Row:
    """One line of the result: samples per peer, in `unit`, and what must be reached.

    `bound` is for Lighter's median divided by containerd's, `at_most` for Lighter's median itself.
    `size` is how many containers there were, `part` whose share of the work it is; in rows of a
    waterfall, samples are not per peer but per kind of time.
    """

    work: str
    unit: str
    samples: dict[str, list[float]] = field(default_factory=dict)
    bound: float | None = None
    at_most: float | None = None
    smaller_is_better: bool = True
    size: int | None = None
    part: str = ""

    def add(self, peer: str, value: float) -> None:
        self.samples.setdefault(peer, []).append(value)

    def median(self, peer: str) -> float | None:
        values = self.samples.get(peer)
        return statistics.median(values) if values else None

    def spread(self, peer: str) -> float | None:
        """Half the distance between the quartiles, or of two or three samples half their range.

        As a share of the median.
        """
        values = self.samples.get(peer, [])
        middle = self.median(peer)
        if len(values) < 2 or not middle:
            return None
        few = len(values) < 4
        low, high = (min(values), max(values)) if few else statistics.quantiles(values, n=4)[::2]
        return (high - low) / 2 / abs(middle)

    def is_unsteady(self, peer: str) -> bool:
        """Whether samples vary by more than their median, which then says little."""
        spread = self.spread(peer)
        return spread is not None and spread > _UNSTEADY

    def ratio(self, peer: str, to: str) -> float | None:
        """None too when one of both is unsteady."""
        if self.is_unsteady(peer) or self.is_unsteady(to):
            return None
        mine, other = self.median(peer), self.median(to)
        return mine / other if mine is not None and other else None
