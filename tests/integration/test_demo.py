"""README's recorded tour is what `make demo` shows, and every step of it holds."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.harness import BIN

CHECKOUT = Path(__file__).parents[2]
# What differs from run to run: names of directories, ids, hashes, pids, ages, widths of columns.
_MASKS = (
    (r"/tmp/lighter-demo\w*(-\w+)?", "BASE"),
    (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "UUID"),
    (r"\b[0-9a-f]{16,64}\b", "HASH"),
    (r"Revision: +\S+", "Revision: R"),
    (r"\b\d+(\.\d+)? MiB\b", "SIZE"),
    (r"(Less than |About )?\b(a|an|\d+) (second|minute)s? ago", "AGE"),
    (r"\b\d{2,7}    \(lighterd\)|(?<=process )\d+|(?<=counter)( +| .*test +)\d+(?= )", "PID"),
    (r"kill -9 \d+", "kill -9 PID"),
    (r" +", " "),
    (r"^ *-*\n|(?<=\n) *\n", ""),
)


def masked(text: str) -> list[str]:
    for pattern, mask in _MASKS:
        text = re.sub(pattern, mask, text)
    return [line.strip() for line in text.splitlines() if line.strip()]


def recorded() -> str:
    section = (CHECKOUT / "README.md").read_text().partition("## What the tour shows\n")[2]
    return section.split("```")[1].removeprefix("\n")


@pytest.mark.timeout(180)
def test_the_tour_is_the_one_in_the_readme() -> None:
    done = subprocess.run(
        [CHECKOUT / "docs" / "demo.sh"],
        env={**os.environ, "LIGHTER_BIN": str(BIN)},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    assert masked(done.stdout) == masked(recorded())
