"""Switch guards off, one by one, and see whether the test of the guard's row turns red.

tests/mutants.toml names the guards. Each is switched off in a copy of the checkout with a virtual
environment of its own, so that managers and workers started there run the changed source too.
A guard is missed when the test fails. A test that cannot be set up or hangs says nothing of it,
nor does one that is red with its guard on: all of them run so first.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
import xml.etree.ElementTree as ET  # of our own pytest
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
TABLE = "tests/mutants.toml"
FOLDERS = ("daemon", "shim", "proto", "ctl")
TEST_S = 300
GREEN, FAILED, BROKEN, HANGS = "green", "failed", "broken", "hangs"


@dataclass(frozen=True)
class Mutant:
    """A guard `off` in one file: its exact text, and what stands there instead."""

    row: str
    file: str
    guard: str
    off: str
    test: str

    def switched_off(self, source: str) -> str:
        """Raises ValueError unless the guard's text is there exactly once."""
        if (count := source.count(self.guard)) != 1:
            raise ValueError(f"{self.row}: {self.file} has {count} times {self.guard!r}")
        return source.replace(self.guard, self.off)


def verdict(junit: str) -> str:
    """Of the tests in a JUnit report of pytest's: failed, when one has failed by its own word."""
    cases = ET.fromstring(junit)  # noqa: S314
    failures = [failure.get("message") or "" for failure in cases.iter("failure")]
    if any(not message.startswith("Failed: Timeout ") for message in failures):
        return FAILED
    if failures:
        return HANGS
    return BROKEN if next(cases.iter("error"), None) is not None else GREEN


def red_tests(junit: str) -> set[str]:
    """Tests that did not pass in a JUnit report of pytest's: their ids without parameters."""
    red = [
        case
        for case in ET.fromstring(junit).iter("testcase")  # noqa: S314
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return {
        case.attrib["classname"].replace(".", "/") + ".py::" + case.attrib["name"].partition("[")[0]
        for case in red
    }


def read_mutants(checkout: Path = CHECKOUT) -> list[Mutant]:
    return [Mutant(**each) for each in tomllib.loads((checkout / TABLE).read_text())["mutant"]]


class Copy:
    """The checkout's files as they are now, below a directory of its own, ready to run tests."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.chmod(0o755)  # some tests run programs of it as another user
        listed = subprocess.run(
            ["/usr/bin/git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=CHECKOUT,
            check=True,
            capture_output=True,
            text=True,
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (CHECKOUT / name).is_file():
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(CHECKOUT / name, directory / name)
        self.python = directory / ".venv/bin/python"
        self._make_environment()

    def _make_environment(self) -> None:
        """One whose package is this copy; everything else is the checkout's own environment."""
        venv.create(self.directory / ".venv", symlinks=True)
        ours = next((CHECKOUT / ".venv/lib").glob("python3*/site-packages"))
        site = self.directory / ".venv/lib" / ours.parent.name / "site-packages"
        (site / "lighter").mkdir()
        for folder in FOLDERS:
            (site / "lighter" / folder).symlink_to(self.directory / folder)
        (site / "checkout.pth").write_text(f"{ours}\n")
        for program in ("lighterd", "ctl"):
            script = (CHECKOUT / ".venv/bin" / program).read_text()
            made = self.python.with_name(program)
            made.write_text(f"#!{self.python}\n{script.partition(chr(10))[2]}")
            made.chmod(0o755)

    @property
    def report(self) -> Path:
        """What pytest wrote of the last run, as JUnit has it."""
        return self.directory / "results.xml"

    def run(self, *tests: str, goes_on: bool = False) -> tuple[str, str]:
        """The verdict on these tests, and what pytest says at its end: that is at the first
        failure, unless it goes on."""
        self.report.unlink(missing_ok=True)
        argv = [str(self.python), "-m", "pytest", "-q", "-m", "not soak"]
        argv += [] if goes_on else ["-x"]
        environ = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        limit_s = TEST_S * len(tests)
        try:
            done = subprocess.run(
                [*argv, f"--junitxml={self.report}", *tests],
                check=False,
                cwd=self.directory,
                env=environ,
                capture_output=True,
                text=True,
                timeout=limit_s,
            )
        except subprocess.TimeoutExpired:
            return HANGS, f"not done within {limit_s} s"
        if done.returncode not in (0, 1):  # neither passed nor failed: there is no such test
            raise ValueError(f"run {tests}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        if not self.report.exists():  # pytest itself was ended, as its time limit may do
            return HANGS, done.stderr[-2000:]
        return verdict(self.report.read_text()), done.stdout[-2000:]


def judge(copy: Copy, mutant: Mutant) -> bool:
    """Whether the test fails without the guard."""
    path = copy.directory / mutant.file
    before = path.read_text()
    path.write_text(mutant.switched_off(before))
    began = time.monotonic()
    try:
        found, _ = copy.run(mutant.test)
    finally:
        path.write_text(before)
    said = {FAILED: "killed", GREEN: "SURVIVES"}.get(found, found.upper())
    sys.stdout.write(f"{said:8} {mutant.row} {mutant.file}: {mutant.guard.strip()!r}")
    sys.stdout.write(f" ({mutant.test.rpartition('::')[2]}, {time.monotonic() - began:.0f} s)\n")
    sys.stdout.flush()
    return found == FAILED


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("rows", nargs="*", help="only these rows' guards")
    args = parser.parse_args()
    chosen = [each for each in read_mutants() if not args.rows or each.row in args.rows]
    with tempfile.TemporaryDirectory(prefix="lighter-mutants-") as directory:
        copy = Copy(Path(directory))
        found, said = copy.run(*sorted({each.test for each in chosen}), goes_on=True)
        if not copy.report.exists():
            sys.stdout.write(f"tests with their guards on: {found}\n{said}\n")
            return 1
        red = red_tests(copy.report.read_text())
        for test in sorted(red):
            sys.stdout.write(f"RED with its guards on: {test}\n")
        sys.stdout.flush()
        fit = [each for each in chosen if each.test.partition("[")[0] not in red]
        killed = [judge(copy, each) for each in fit]
    sys.stdout.write(f"{sum(killed)} of {len(chosen)} killed\n")
    return 0 if sum(killed) == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
