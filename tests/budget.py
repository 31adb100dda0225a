"""How long the tests of each folder took, and whether that is more than tests/BUDGET gives them."""

from collections import Counter
from pathlib import Path

FILE = Path(__file__).with_name("BUDGET")
MOST_S = 4500
SLOWER = 2  # a machine may be that much slower than the one the figures are of


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

    def over(self) -> list[str]:
        """A line for each folder that took too long."""
        return [
            f"tests/{folder} took {seconds:.0f} s, tests/BUDGET gives it {self._budget[folder]:.0f}"
            for folder, seconds in sorted(self.seconds.items())
            if folder in self._budget and seconds > SLOWER * self._budget[folder]
        ]
