"""File systems of a test's own, in sparse files."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from lighter.shim import linux
from tests.harness import await_that

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


@contextmanager
def ext4_at(directory: Path, *mkfs_options: str, size_bytes: int = 64 << 20) -> Iterator[None]:
    """A small one that is mounted at the directory, with no block kept for root.

    Its blocks are of 4 KiB, as on all but small disks, unless the options say otherwise.
    """
    disk = directory.with_name(directory.name + ".disk")
    with disk.open("wb") as file:
        file.truncate(size_bytes)
    try:
        argv = ["mkfs.ext4", "-q", "-b", "4096", "-m", "0", "-E", "lazy_itable_init=0"]
        subprocess.run([*argv, *mkfs_options, disk], check=True)
        subprocess.run(["mount", "-o", "loop", disk, directory], check=True)
        try:
            yield
        finally:
            await_that(lambda: _is_unmounted(directory), 20, "nobody uses it")
    finally:
        disk.unlink()


def _is_unmounted(directory: Path) -> bool:
    """Not while somebody looks at the memory of a process that has mapped a file there."""
    try:
        linux.umount(str(directory))
    except OSError as err:
        if err.errno != errno.EBUSY:
            raise
        return False
    return True


class Ext4:
    """An ext4 at `directory` whose power can be cut.

    Nothing reaches its file by itself within a test: no commit of the journal but for an fsync. So
    what a cut leaves is what was synced, and little else.
    """

    def __init__(self, directory: Path, size_bytes: int = 160 << 20) -> None:
        self.directory = directory
        self._disk = directory.with_name(directory.name + ".disk")
        self._size_bytes = size_bytes

    def __enter__(self) -> "Ext4":
        with self._disk.open("wb") as file:
            file.truncate(self._size_bytes)
        subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=1", self._disk], check=True)
        self._mount()
        return self

    def _mount(self) -> None:
        options = "loop,commit=600,data=ordered"
        subprocess.run(["mount", "-o", options, self._disk, self.directory], check=True)

    def cut(self) -> Path:
        """What the disk holds now, in a file beside it; the file system goes on."""
        copy = self._disk.with_suffix(".cut")
        subprocess.run(["cp", "--sparse=always", self._disk, copy], check=True)
        return copy

    def come_back(self, copy: Path) -> None:
        """The power is there again: what is open belongs to the life before, and is nobody's."""
        linux.umount(str(self.directory), linux.MNT_DETACH)
        os.rename(copy, self._disk)
        self._mount()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        linux.umount(str(self.directory), linux.MNT_DETACH)
        self._disk.unlink()
        self._disk.with_suffix(".cut").unlink(missing_ok=True)
