"""What a disk holds after its power was cut, at any moment of a machine's life.

qemu writes down all that the guest does to its disk, in order, in the format of the kernel's
dm-log-writes (Documentation/admin-guide/device-mapper/log-writes.rst):

    sector 0    magic, version, number of entries, sector size
    then        one sector per entry: first sector, number of sectors, flags, length of a mark;
                for a write, its data

A real disk keeps what was written before a flush that it has answered, and of the rest nothing,
something or all of it, in any order. `replay` makes the harshest of these: everything up to a flush
and nothing after it. Killing qemu alone would show less, since what it has handed to the host's
kernel is kept there, flushed or not.
"""

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MAGIC = 0x6A736677736872
_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")
_FLUSH, _FUA, _DISCARD, _MARK = 1, 2, 4, 8
_SECTOR = 512


@dataclass(frozen=True)
class Entry:
    """One request: `size` bytes of data for the disk's byte `at`, which stand at `data` in the log;
    `end` is where the next entry begins.
    """

    at: int
    size: int
    flags: int
    data: int
    end: int

    @property
    def is_flush(self) -> bool:
        return bool(self.flags & _FLUSH)


def entries(log: Path, up_to: int) -> Iterator[Entry]:
    """Those that were complete when the log had `up_to` bytes. Raises ValueError for no log."""
    with log.open("rb") as file:
        magic, version, _count, sector = _SUPER.unpack(file.read(_SUPER.size))
        if (magic, version, sector) != (_MAGIC, 1, _SECTOR):
            raise ValueError(f"read {log}: it is no log of writes")
        begin = sector
        while begin + sector <= up_to:
            file.seek(begin)
            first, count, flags, text = _ENTRY.unpack(file.read(_ENTRY.size))
            data = begin + sector
            size = 0 if flags & _DISCARD else count * sector
            end = data + size + (text if flags & _MARK else 0)
            if end > up_to or not (count or flags):
                return
            yield Entry(first * sector, size, flags, data, end)
            begin = end


def last_flush(log: Path, up_to: int) -> int:
    """Where the log ends for a disk that lost its power when the log had `up_to` bytes."""
    ends = [entry.end for entry in entries(log, up_to) if entry.is_flush]
    assert ends, "the guest has never flushed"
    return ends[-1]


def replay(base: Path, log: Path, up_to: int, disk: Path) -> None:
    """Make `disk` from `base` and the first `up_to` bytes of the log."""
    disk.unlink(missing_ok=True)
    subprocess.run(["cp", "--sparse=always", base, disk], check=True, timeout=300)
    with log.open("rb") as source, disk.open("r+b") as target:
        for entry in entries(log, up_to):
            source.seek(entry.data)
            target.seek(entry.at)
            left = entry.size
            while left:
                block = source.read(min(left, 1 << 20))
                target.write(block)
                left -= len(block)


def without_data(disk: Path, target: Path) -> None:
    """Copy a disk's file system without what its files hold: a base for `replay`, thirty times as
    small, for looking at files that the log has written.
    """
    # Its tools stand in sbin, which a user's PATH may lack.
    e2image = shutil.which("e2image", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    assert e2image, "e2image, which comes with mke2fs, is not installed"
    subprocess.run([e2image, "-r", disk, target], check=True, timeout=300, capture_output=True)


class Mounted:
    """A disk's file system, its journal replayed, as a directory of this host."""

    def __init__(self, disk: Path, at: Path) -> None:
        self._disk = disk
        self.path = at

    def __enter__(self) -> Path:
        self.path.mkdir(exist_ok=True)
        argv = ["mount", "-t", "ext4", "-o", "loop,errors=continue", self._disk, self.path]
        subprocess.run(argv, check=True, timeout=60)
        return self.path

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", self.path], check=True, timeout=60)
        os.rmdir(self.path)
