"""Traffic in a machine while a test does something to the manager there (see tests/traffic.py).

    traffic = Traffic(machine.run, image, idle=200, rate_mb=5).begin()
    traffic.mark("restart"); machine.run("systemctl", "restart", "lighterd")
    report = traffic.finish()                # raises when a byte, a code or a process was lost

The machine needs systemd, python3, ctl, and the script at SCRIPT. How it is reached is up to
`run(*argv, timeout=…, check=…)`, which returns what subprocess.run does, with text.
"""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("traffic.py")
SCRIPT = "/var/lib/traffic.py"
BEGIN_S = 240.0
FINISH_S = 240.0
SETTLE_S = 3.0
# What there must have been of it, else a test of it proves nothing: a share of the rate asked for,
# on a machine that is slow and shared; short containers; calls.
LEAST_SHARE = 0.02
LEAST_EXITS = 6
LEAST_CALLS = 10
LANES = 3  # traffic.py, LIVES

_UNIT = "traffic.service"
_DIR = "/var/lib/traffic"
_POLL_S = 0.5

Run = Callable[..., "subprocess.CompletedProcess[str]"]


class Traffic:
    """One run of the script as a unit of the machine."""

    def __init__(self, run: Run, image: str, *, idle: int, rate_mb: float) -> None:
        self._run = run
        self._rate_mb = rate_mb
        self._marks = 0
        self._argv = (
            *("python3", SCRIPT, "run", _DIR, "--image", image),
            *("--idle", str(idle), "--rate-mb", str(rate_mb)),
        )

    def begin(self) -> "Traffic":
        """Return when all kinds of it are under way."""
        self._run("rm", "-rf", _DIR)
        self._run("systemd-run", "--quiet", f"--unit={_UNIT}", "--collect", *self._argv)
        self._await(f"{_DIR}/ready", BEGIN_S)
        return self

    def mark(self, name: str) -> None:
        """Something is about to be done; the report tells the longest gap after it."""
        self._marks += 1
        self._run("python3", SCRIPT, "mark", _DIR, name)

    def settle(self) -> None:
        """Let some traffic pass, so that what comes next is judged apart."""
        time.sleep(SETTLE_S)

    def finish(self) -> dict[str, Any]:
        """End it; the report. Raises AssertionError with all that went wrong."""
        self._run("touch", f"{_DIR}/stop")
        self._await(f"{_DIR}/report.json", FINISH_S)
        text = self._run("cat", f"{_DIR}/report.json").stdout
        report: dict[str, Any] = json.loads(text)
        assert not report["problems"], text
        assert report["echo"]["bytes"] > 0, text
        for kind in ("log", "pipe"):
            assert report[kind]["mb_per_s"] >= LEAST_SHARE * self._rate_mb, text
        assert report["exec"]["lines"] > 0, text
        exits = report["exits"]
        assert exits["exits"] >= LEAST_EXITS, text
        # A manager that goes away cuts one start of each lane short; the next waits for another.
        assert exits["starts_refused"] <= 2 * LANES * max(1, self._marks), text
        assert report["api"]["calls"] >= LEAST_CALLS, text
        assert len(report["api"]["longest_gap_after_s"]) == self._marks, text
        return report

    def _await(self, path: str, within_s: float) -> None:
        until = time.monotonic() + within_s
        while self._run("test", "-e", path, check=False).returncode:
            running = self._run("systemctl", "is-active", "--quiet", _UNIT, check=False)
            # It may have written its report and ended between the two looks.
            if running.returncode and self._run("test", "-e", path, check=False).returncode:
                raise AssertionError(f"traffic has ended without {path}\n{self._words()}")
            assert time.monotonic() < until, f"no {path} after {within_s} s\n{self._words()}"
            time.sleep(_POLL_S)

    def _words(self) -> str:
        report = self._run("cat", f"{_DIR}/report.json", check=False).stdout
        log = self._run("journalctl", "-u", _UNIT, "-n", "50", "--no-pager", check=False).stdout
        return f"{report}\n{log}"
