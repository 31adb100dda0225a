"""How long the tests of each folder took, and whether that is more than tests/BUDGET gives them.

The figures together are no more than is promised, on the machine that they are of. Another is
slower, and that one on some days: so a folder may take twice its figure, and a session half as long
again as all of them. What `make` did before its first test is told beside it, and what is promised.
"""

import os
import time
from collections import Counter
from pathlib import Path

FILE = Path(__file__).with_name("BUDGET")
MOST_S = 4500
SLOWER = 2  # for a folder; what slows a machine down seldom does so all the time
ALL_SLOWER = 1.5


def read(text: str) -> dict[str, float]:
    """Seconds by folder."""
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return {folder: float(seconds) for folder, seconds in lines}


class Spent:
    """Sums up durations by the folder below tests/."""

    def __init__(self, budget: dict[str, float]) -> None:
        self._budget = budget
        self.seconds: Counter[str] = Counter()

    def add(self, nodeid: str, seconds: float) -> None:
        parts = nodeid.split("/")
        if parts[0] == "tests" and len(parts) > 2:
            self.seconds[parts[1]] += seconds

    def over(self, whole_s: float = 0) -> list[str]:
        """A line for each folder that took too long, and one when `whole_s` of all is too long."""
        lines = [
            f"tests/{folder} took {seconds:.0f} s, tests/BUDGET gives it {self._budget[folder]:.0f}"
            for folder, seconds in sorted(self.seconds.items())
            if folder in self._budget and seconds > SLOWER * self._budget[folder]
        ]
        if whole_s > ALL_SLOWER * MOST_S:
            lines.append(f"all tests took {whole_s:.0f} s, they have {MOST_S}")
        return lines


def before_s() -> float | None:
    """How long the `make` that this process is of has been at work; None when it is of none."""
    began, pid = None, os.getpid()
    while pid > 1:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
        except OSError:  # it ended between two looks
            break
        fields = stat[2].split()  # from the third one of proc_pid_stat(5) on
        if stat[0].endswith("(make"):
            began = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        pid = int(fields[1])
    return None if began is None else time.clock_gettime(time.CLOCK_BOOTTIME) - began
