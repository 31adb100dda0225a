"""Whom the kernel's log names as victims of the OOM killer."""

import os
from collections.abc import Iterator

import pytest

from lighter.shim.oom import is_logged

GROUP = "/system.slice/docker-1f.scope"
KILLED = b"Memory cgroup out of memory: Killed process %d (sh) total-vm:20448kB, anon-rss:15616kB\n"
WHERE = b"oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=%b,task_memcg=%b,task=sh,pid=7,uid=0\n"


@pytest.fixture
def records() -> Iterator[tuple[int, str]]:
    """A pipe of packets, each read by itself as a record of /dev/kmsg is, and its path."""
    read_end, write_end = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
    yield write_end, f"/proc/self/fd/{read_end}"
    os.close(read_end)
    os.close(write_end)


def where(group: str, below: str = "") -> bytes:
    return WHERE % (group.encode(), (group + below).encode())


@pytest.mark.parametrize(
    ("prefix", "text", "expected"),
    [
        (b"3,871,5000,-;", KILLED % 19, True),
        (b"3,871,5000,c;", KILLED % 19, True),
        (b"3,871,5000,-;", KILLED % 190, False),
        (b"3,871,5000,-;", KILLED % 9, False),
        (b"3,871,4999,-;", KILLED % 19, False),  # before: the pid was another's
        (b"12,871,5000,-;", KILLED % 19, False),  # somebody has written it: facility "user"
        (b"", KILLED % 19, False),
        (b"6,871,5000,-;", where(GROUP), True),
        (b"6,871,5000,-;", where(GROUP, "/inner"), True),
        (b"6,871,5000,-;", where(GROUP + "x"), False),
        (b"6,871,5000,-;", where("/other"), False),
        (b"6,871,4999,-;", where(GROUP), False),  # before: an earlier life of the same name
        (b"14,871,5000,-;", where(GROUP), False),
    ],
)
def test_a_victim_is_known_by_the_kernels_own_record(
    records: tuple[int, str], prefix: bytes, text: bytes, expected: bool
) -> None:
    write_end, path = records
    os.write(write_end, b"6,1,0,-;Linux version\n SUBSYSTEM=pci\n")
    os.write(write_end, b"6,2,5000,-;usb 1-1: new device\n SUBSYSTEM=usb\n")
    os.write(write_end, prefix + text)
    os.write(write_end, b"6,900,6000,-;oom_reaper: reaped process 19 (sh)\n")
    assert is_logged(GROUP, 19, 5000, path) is expected


def test_a_log_that_cannot_be_read_names_nobody(records: tuple[int, str]) -> None:
    assert not is_logged(GROUP, 19, 0, records[1])  # EAGAIN at once
    assert not is_logged(GROUP, 19, 0, "/proc/self/nosuch")
    assert not is_logged(GROUP, 19, 0, "/dev/null")
