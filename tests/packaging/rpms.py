"""The rpms of this checkout, built when their sources have changed; one build at a time."""

import os
import subprocess
import sys
from pathlib import Path

_BUILD = Path(__file__).resolve().parents[2] / "packaging" / "rpm" / "build.py"
BUILD_S = 900


def built(output: Path, version: str | None = None) -> dict[str, Path]:
    """Package name → rpm below `output`, "src" for the source rpm; of `version` instead of ours."""
    argv = [sys.executable, str(_BUILD), "--output", str(output)]
    if version:
        argv += ["--version", version]
    # The build's own modules stand beside it.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=BUILD_S, env=environ)
    assert done.returncode == 0, done.stderr
    found = {}
    for line in done.stdout.splitlines():
        name = query(Path(line), "%{NAME}")
        found["src" if line.endswith(".src.rpm") else name] = Path(line)
    return found


def query(rpm: Path, form: str, *options: str) -> str:
    """What rpm tells of a package file."""
    argv = ["rpm", "-qp", *options, *(["--queryformat", form] if form else []), str(rpm)]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout
