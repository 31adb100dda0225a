"""Whom the kernel's log names as victims of the OOM killer."""

import os
from collections.abc import Iterator

import pytest

from lighter.shim.oom import is_logged

KILLED = b"Memory cgroup out of memory: Killed process %d (sh) total-vm:20448kB, anon-rss:15616kB\n"


@pytest.fixture
def records() -> Iterator[tuple[int, str]]:
    """A pipe of packets, each read by itself as a record of /dev/kmsg is, and its path."""
    read_end, write_end = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
    yield write_end, f"/proc/self/fd/{read_end}"
    os.close(read_end)
    os.close(write_end)


@pytest.mark.parametrize(
    ("prefix", "pid", "expected"),
    [
        (b"3,871,73164543136,-;", 19, True),
        (b"6,871,73164543136,c;", 19, True),
        (b"3,871,73164543136,-;", 190, False),
        (b"3,871,73164543136,-;", 9, False),
        (b"12,871,73164543136,-;", 19, False),  # somebody has written it: facility "user"
        (b"", 19, False),
    ],
)
def test_a_victim_is_known_by_the_kernels_own_record(
    records: tuple[int, str], prefix: bytes, pid: int, expected: bool
) -> None:
    write_end, path = records
    os.write(write_end, b"6,1,0,-;Linux version\n SUBSYSTEM=pci\n")
    os.write(write_end, prefix + KILLED % pid)
    os.write(write_end, b"6,900,73164543200,-;oom_reaper: reaped process 19 (sh)\n")
    assert is_logged(19, path) is expected


def test_a_log_that_cannot_be_read_names_nobody(records: tuple[int, str]) -> None:
    assert not is_logged(19, records[1])  # EAGAIN at once
    assert not is_logged(19, "/proc/self/nosuch")
    assert not is_logged(19, "/dev/null")
