"""What a short command loads: its start is most of its time."""

import subprocess
import sys

# Each costs milliseconds in every command, or is another command's.
COSTLY = {
    "asyncio",
    "csv",
    "dataclasses",
    "importlib.metadata",
    "lighter.ctl.process",
    "lighter.ctl.run",
    "lighter.ctl.task",
    "logging",
    "subprocess",
}


def test_version_loads_little() -> None:
    script = (
        "import sys, lighter.ctl.__main__, lighter.ctl.connect, lighter.ctl.system\n"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=20
    )
    loaded = set(done.stdout.split())
    assert "lighter.ctl.connect" in loaded
    assert not COSTLY & loaded
