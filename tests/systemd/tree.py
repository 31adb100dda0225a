"""The file tree of a small Debian with systemd, made once by debootstrap and kept by its content.

python -m tests.systemd.tree        makes it when needed and prints its path
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

_CACHE = Path(__file__).resolve().parents[2] / ".cache" / "trees"
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
SUITE = "bookworm"
# What the rpm requires of a host, what the tests use, and what makes it boot.
PACKAGES = (
    *("systemd", "systemd-sysv", "runc", "python3", "rpm"),
    *("busybox-static", "iproute2", "procps"),
)
MAKE_S = 600.0


def debian_tree(cache_dir: Path = _CACHE) -> Path:
    """The tree's directory; nobody may write to it (machines put an overlay on it)."""
    key = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    tree = cache_dir / f"{SUITE}-{key}"
    if not tree.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        for stale in cache_dir.glob(f"{SUITE}-*"):
            shutil.rmtree(stale)
        making = cache_dir / f"{SUITE}-{key}.{os.getpid()}.making"
        _debootstrap(making)
        making.rename(tree)
    return tree


def _debootstrap(tree: Path) -> None:
    made = subprocess.run(
        [
            *("debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"),
            *(SUITE, str(tree), MIRROR),
        ],
        capture_output=True,
        text=True,
        timeout=MAKE_S,
    )
    if made.returncode:
        shutil.rmtree(tree, ignore_errors=True)
        raise AssertionError(f"debootstrap {SUITE}: {made.stdout[-2000:]}{made.stderr[-2000:]}")
    for archive in (tree / "var/cache/apt/archives").glob("*.deb"):
        archive.unlink()
    # A machine must not share the identity of another.
    (tree / "etc/machine-id").unlink()
    # On disk the journal would only be slower; on the console it outlives the machine.
    journald = tree / "etc/systemd/journald.conf.d"
    journald.mkdir(parents=True)
    settings = ("Storage=volatile", "RateLimitIntervalSec=0", "ForwardToConsole=yes")
    (journald / "tests.conf").write_text("\n".join(["[Journal]", *settings, ""]))


if __name__ == "__main__":
    sys.stdout.write(f"{debian_tree()}\n")
