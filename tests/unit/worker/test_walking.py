"""Files that somebody else changes while they are walked over."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

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
