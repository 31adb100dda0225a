"""Files that somebody else changes while they are walked over."""

import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lighter.proto.errors import Unavailable
from lighter.shim.worker.failure import typed
from lighter.shim.worker.walking import Opener


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_only_regular_files_are_opened(tmp_path: Path, folder: int) -> None:
    """Opening a device that no driver has fails, and a FIFO that nobody writes waits for ever: that
    neither happens tells that they were not opened."""
    os.mknod(tmp_path / "device", 0o600 | stat.S_IFBLK, os.makedev(4000, 4000))
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("content")
    (tmp_path / "link").symlink_to("file")
    opener = Opener()
    for name in (b"device", b"fifo", b"link"):
        assert opener.regular(folder, name) == -1, name
    fd = opener.regular(folder, b"file")
    assert os.read(fd, 20) == b"content"
    os.close(fd)


def test_what_opens_files_leads_nowhere_else() -> None:
    descriptors = Opener()._descriptors
    here = os.stat(".", dir_fd=descriptors)
    assert os.path.samestat(os.stat("../..", dir_fd=descriptors), here)
    with pytest.raises(FileNotFoundError):
        os.stat("../../sys", dir_fd=descriptors)


_HOLDER = """
import fcntl, os, signal, sys
file = open(sys.argv[1], "r+b")
def asked(*_of):
    if sys.argv[2] == "obeys":
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
signal.signal(signal.SIGIO, asked)
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("leased", flush=True)
sys.stdin.read()
"""


@contextmanager
def leased(file: Path, how: str) -> Iterator[None]:
    argv = [sys.executable, "-c", _HOLDER, file, how]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        assert holder.stdout.readline() == b"leased\n"
        yield
        holder.stdin.close()


def test_a_lease_is_waited_for_but_not_for_each_file(tmp_path: Path, folder: int) -> None:
    file = tmp_path / "file"
    file.write_text("content")
    opener = Opener(patience_s=30)
    with leased(file, "obeys"):
        fd = opener.regular(folder, b"file")
    assert (os.read(fd, 20), os.get_blocking(fd)) == (b"content", True)
    os.close(fd)
    opener = Opener(patience_s=0.1)
    with leased(file, "holds on"):
        began = time.monotonic()
        for _ in range(2):
            with pytest.raises(BlockingIOError, match="does not give up its lease") as raised:
                opener.regular(folder, b"file")
        took_s = time.monotonic() - began
    assert took_s < int(Path("/proc/sys/fs/lease-break-time").read_text())
    assert isinstance(typed(raised.value, "read 'file'"), Unavailable)
