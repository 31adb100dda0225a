"""The first release, 0.1.0, as it was: whole, installed from the wheel that is kept beside this.

Its shims reach the manager through libzmq, and its shim records name no version: what is true with
it on the other side is true for the users who have it running.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

WHEEL = Path(__file__).with_name("lighter-0.1.0-py3-none-any.whl")
SHA256 = "82a5b84b1e2521cbf407be4e173fa2ecef3fa7104d33e5f9055b2f392049020f"
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "compat"


def installed() -> Path:
    """The directory of its programs, in an environment of its own with the pins it came with."""
    assert hashlib.sha256(WHEEL.read_bytes()).hexdigest() == SHA256, f"{WHEEL.name} was changed"
    environment = CACHE / f"{SHA256[:12]}-{sys.version_info.major}.{sys.version_info.minor}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (environment / "whole").exists():
            _install(environment)
    return environment / "bin"


def _install(environment: Path) -> None:
    own = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as elsewhere:
        for argv in (
            [sys.executable, "-m", "venv", "--clear", str(environment)],
            [str(environment / "bin" / "pip"), "install", "-q", "--compile", str(WHEEL)],
        ):
            subprocess.run(argv, check=True, env=own, cwd=elsewhere, timeout=300)
    (environment / "whole").touch()
