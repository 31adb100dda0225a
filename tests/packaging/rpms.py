"""The rpms of this checkout, built when their sources have changed; one build at a time.

`unpack` takes the files out of one, `programs` makes them run where they say they are installed.
"""

import os
import subprocess
import sys
from pathlib import Path

_BUILD = Path(__file__).resolve().parents[2] / "packaging" / "rpm" / "build.py"
BUILD_S = 900
# A version above any of ours, for upgrades.
NEXT = "0.99.0"
# One that speaks protocols of its own, and can adopt nothing of ours.
ALIEN = "0.98.0"
ALIEN_PROTOCOLS = (99,)
# Becomes the installed program: the same process, with the same arguments.
_OVERLAID = """#!/bin/sh
exec unshare --mount sh -c '
mount -t overlay overlay -o "lowerdir={unpacked}/usr:/usr" /usr && exec {path} "$@"
' sh "$@"
"""


def built(output: Path, version: str | None = None, **literals: object) -> dict[str, Path]:
    """Package name → rpm below `output`, "src" for the source rpm; of `version` instead of ours.

    `literals` stand in proto/compat.py in place of ours.
    """
    argv = [sys.executable, str(_BUILD), "--output", str(output)]
    if version:
        argv += ["--version", version]
    for name, value in literals.items():
        argv += ["--literal", f"{name}={value!r}"]
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


def unpack(rpm: Path, into: Path) -> None:
    """The files of a package, below `into`; for a source rpm its sources."""
    into.mkdir(parents=True, exist_ok=True)
    unpack = 'rpm2cpio "$0" | cpio -idmu --quiet'
    subprocess.run(["sh", "-c", unpack, str(rpm)], cwd=into, check=True)


def programs(unpacked: Path, directory: Path) -> Path:
    """`directory` with lighterd and ctl as they are installed.

    Each runs in a mount namespace of its own, where /usr is the host's under the package's.
    """
    directory.mkdir()
    for name, path in (
        ("lighterd", "/usr/bin/lighterd"),
        ("ctl", "/usr/bin/ctl"),
        ("lighter-spawner", "/usr/libexec/lighter/lighter-spawner"),
    ):
        (directory / name).write_text(_OVERLAID.format(unpacked=unpacked, path=path))
        (directory / name).chmod(0o755)
    return directory
