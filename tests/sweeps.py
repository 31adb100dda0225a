"""The sweep: what a user asks is asked once to count the fault points that it passes, then again
with a fault at each of them.

A scenario is a cycle of commands that ends where it began. Whatever breaks is helped as systemd or
an operator would, and the command that failed is repeated until it works or says that it had worked
before. At the end nothing of the cycle may be left.

The manager's end at a point is planned by its start, and the next point by the start after that: so
a cycle meets one fault after the other. What it survives is planned all together: a command fails
at the first point, its repetition at the next.
"""

import os
import re
import signal
import subprocess
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests import census, lives
from tests.harness import Lighterd, await_that, settled

STEP_S = 60.0
REPEATED_S = 90.0
# Passed by every start and by every small file, or in a shim: those have sweeps of their own.
NOT_SWEPT = re.compile(
    r"start\.(locked|recovered|completed|tidied)|file\.written|(shim|spawner|worker)\..*"
)
# How ctl and ctr say that what they are asked for is done, or that there is nothing to undo.
HAD_WORKED = ("already", "no such", "not found", "there is none", "not attached", "it is running")
_POLL_S = 0.02


@dataclass(frozen=True)
class Scenario:
    """Commands of a cycle, each an argv; "{n}" in one is the cycle's number.

    Those in `vain` may find nothing to do. `let_go` is done after each cycle; `left` is asked then.
    """

    steps: Sequence[Sequence[str]]
    vain: Sequence[Sequence[str]] = ()
    left: Callable[[], list[str]] = list
    let_go: Callable[[], None] = lambda: None


def read_commands(
    text: str, program: Sequence[str], words: Mapping[str, object]
) -> tuple[list[list[str]], list[list[str]]]:
    """The steps of a text with a command a line, and those in vain, whose lines begin with "- "."""
    lines = [line.strip() for line in text.format(**words, n="{n}").strip().splitlines()]
    steps = [[*program, *line.removeprefix("- ").split()] for line in lines]
    vain = [step for step, line in zip(steps, lines, strict=True) if line.startswith("- ")]
    return steps, vain


class Sweep:
    """Sweeps a scenario of an instance that has what the scenario needs, and no container."""

    def __init__(self, lighterd: Lighterd, scenario: Scenario) -> None:
        self.lighterd = lighterd
        self.scenario = scenario
        self.said: list[str] = []  # by commands that failed
        self.deaths = 0
        self.stood = 0  # times that the manager stood still and was helped on
        self._cycles = 0
        self._plans: deque[str] = deque()
        self._continues = True

    # --- the points there are

    def points(self) -> dict[str, int]:
        """Those of a cycle, in their order, each with the number of its first pass in it.

        A manager passes some of them when it starts.
        """
        self._restart()
        at_start = Counter(self._passed())
        size = self._trace.stat().st_size
        self._cycle()
        self._look()
        assert not self.said, self.said
        return {
            point: at_start[point] + 1
            for point in dict.fromkeys(self._passed(size))
            if not NOT_SWEPT.fullmatch(point)
        }

    # --- faults at them

    def fail(self, points: Mapping[str, int], action: str) -> None:
        """Each raises an error, once. What could not be undone then, the next start may undo."""
        self._meet_all(points, action)
        told = "asked to fail" if action == "error" else "asked to be wrong"
        assert any(told in line for line in self.said), self.said
        self._restart()
        self._look()

    def stand_still(self, points: Mapping[str, int]) -> None:
        """The manager stops at each, and goes on: no command fails."""
        self.stood = 0
        self._meet_all(points, "stop")
        # Fewer where two threads stop at once: the process stands still once for both.
        assert self.stood >= len(points) / 2, "the trace is written before a point acts"
        assert not self.said, self.said
        self._look()

    def _meet_all(self, points: Mapping[str, int], action: str) -> None:
        """What is repeated may go another way: a second cycle passes the rest."""
        self._continues = True
        for _ in range(3):
            self._restart(",".join(f"{point}:{action}:{n}" for point, n in points.items()))
            self._cycle()
            passed = Counter(self._passed())
            points = {point: n for point, n in points.items() if passed[point] < n}
            if not points:
                return
        raise AssertionError(f"not passed: {points}")

    def lose_workers(self, action: str) -> None:
        """Each one, at its beginning: what needs one is refused in words, until they do their work.

        At least one of the commands needs one.
        """
        self._restart(f"worker.asked:{action}:0")
        code, text = self._try([*self.scenario.steps[0]])
        assert code and text.rpartition("ctl: ")[2].count("\n") == 1, text
        assert "worker" in text or "asked to" in text, text
        self._restart()
        self._cycle()
        self._look()

    def die(self, points: Mapping[str, int], *, stopped: bool = False, apart: bool = False) -> None:
        """The manager ends at each, killed or `stopped` first; `apart`: in a cycle of its own."""
        action = "stop" if stopped else "abort"
        self._continues = not stopped
        plans = [f"{point}:{action}:{n}" for point, n in points.items()]
        while plans:
            self._plans = deque(plans[:1] if apart else plans)
            deaths = self.deaths
            self._restart(self._plans.popleft())
            self._cycle()
            self._look()
            count = self.deaths - deaths
            assert count, f"{plans[0]} is not passed"
            del plans[:count]

    # --- one cycle

    def _cycle(self) -> None:
        self._cycles += 1
        for step in self.scenario.steps:
            argv = [word.replace("{n}", str(self._cycles)) for word in step]
            self._until_it_works(argv, in_vain=step in self.scenario.vain)
        self.scenario.let_go()
        self._until_it_works(self.lighterd.ctl_argv("system", "prune"))

    def _look(self) -> None:
        """Nothing of the cycle is left, or soon will be."""
        try:
            settled(self._left)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.said}\n{self.lighterd.log_end(6000)}") from None

    def _left(self) -> list[str]:
        self._help()
        return [
            *self.lighterd.left_on_disk(),
            *(f"shim {pid}" for pid in self.lighterd.shims()),
            *census.marked_mounts(self.lighterd.owners_of_this()),
            *self.scenario.left(),
        ]

    def _until_it_works(self, argv: list[str], *, in_vain: bool = False) -> None:
        end = time.monotonic() + REPEATED_S
        was_tried = in_vain
        while True:
            code, text = self._try(argv)
            if code == 0 or (was_tried and any(words in text for words in HAD_WORKED)):
                return
            assert "Traceback" not in text and text.strip(), text
            self.said.append(f"{' '.join(argv[3:])}: {text.strip()[-400:]}")
            assert time.monotonic() < end, f"{argv} fails for {REPEATED_S} s: {self.said[-3:]}"
            was_tried = True
            time.sleep(_POLL_S)

    def _try(self, argv: list[str]) -> tuple[int, str]:
        """Its exit code and what it said; a manager that is in its way is helped meanwhile."""
        end = time.monotonic() + STEP_S
        said = self.lighterd.base / "said"
        with said.open("wb") as file:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )
        try:
            while process.poll() is None:
                self._help()
                assert time.monotonic() < end, f"{argv}: not over in {STEP_S} s"
                time.sleep(_POLL_S)
        finally:
            process.kill()
            process.wait()
        self._help()
        return process.returncode, said.read_text(errors="replace")

    # --- the manager

    @property
    def _trace(self) -> Path:
        return self.lighterd.base / "trace"

    def _passed(self, offset: int = 0) -> list[str]:
        if not self._trace.exists():
            return []
        with self._trace.open() as file:
            file.seek(offset)
            return [line.split()[1] for line in file]

    def _help(self) -> None:
        """One that stands goes on, or is killed; one that is dead has a successor."""
        if lives.process_state(self.lighterd.pid) == "T":
            if self._continues:
                os.kill(self.lighterd.pid, signal.SIGCONT)
                self.stood += 1
                return
            lives.kill_stopped(self.lighterd.pid)
        if lives.process_state(self.lighterd.pid) in ("", "Z", "X"):
            self._bury()
            self._begin()

    def _bury(self) -> None:
        assert self.lighterd.process is not None
        code = self.lighterd.process.wait()
        assert code == -signal.SIGKILL, f"lighterd ended with {code}\n{self.lighterd.log_end()}"
        self.deaths += 1
        self.lighterd._await_spawner()

    def _restart(self, plan: str = "") -> None:
        """With this plan, and with all behind it that a manager does once after its start."""
        if self.lighterd.process is not None and self.lighterd.process.poll() is None:
            self.lighterd.stop()
        self._trace.unlink(missing_ok=True)
        self.lighterd.start(FAULT=plan, FAULT_TRACE=str(self._trace))
        await_that(self._is_started, STEP_S, "its start is over")

    def _is_started(self) -> bool:
        self._help()  # what an earlier cycle left can make a start pass the point more often
        return "start.tidied" in self._passed()

    def _begin(self) -> None:
        """The next one, with the next plan; it may come to its point while it recovers."""
        while True:
            plan = self._plans.popleft() if self._plans else ""
            try:
                self.lighterd.start(FAULT=plan, FAULT_TRACE=str(self._trace))
                return
            except AssertionError:
                if lives.process_state(self.lighterd.pid) not in ("", "Z", "X"):
                    raise
                self._bury()
