"""What /proc says of processes and of this boot: proc_pid_stat(5), random(4)."""

import os


def read_boot_id() -> str:
    """A word that is another one after each boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read(64).strip()


def stat_of(pid: int) -> list[bytes]:
    """The fields of proc_pid_stat(5) from the state on, which is its third. Raises OSError.

    Lists and starts read it for every task: plain calls take half of what a file object does.
    """
    fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096).rpartition(b")")[2].split()
    finally:
        os.close(fd)


def is_stopped(pid: int) -> bool:
    """Whether the process is held by a stop signal or a debugger (state T or t)."""
    return _state(pid) in (b"T", b"t")


def has_ended(pid: int) -> bool:
    """Whether the process is gone, or a zombie: its shim may tell that later."""
    return _state(pid) in (b"", b"Z", b"X")


def parent_of(pid: int) -> int:
    """The parent's pid; 0 for a process that is gone."""
    try:
        return int(stat_of(pid)[1])
    except (OSError, IndexError):
        return 0


def _state(pid: int) -> bytes:
    """One letter; b"" for a process that is gone."""
    try:
        return stat_of(pid)[0]
    except (OSError, IndexError):
        return b""
