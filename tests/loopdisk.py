"""A btrfs of a test's own, in a sparse file."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lighter.shim import linux

SIZE_BYTES = 256 << 20  # mkfs.btrfs refuses less than about 110 MB


@contextmanager
def btrfs_at(directory: Path) -> Iterator[None]:
    """One that is mounted at the directory; its file lies beside that."""
    disk = directory.with_name(directory.name + ".disk")
    with disk.open("wb") as file:
        file.truncate(SIZE_BYTES)
    try:
        subprocess.run(["mkfs.btrfs", "-q", disk], check=True)
        subprocess.run(["mount", "-o", "loop", disk, directory], check=True)
        try:
            yield
        finally:
            linux.umount(str(directory))
    finally:
        disk.unlink()
