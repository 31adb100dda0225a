"""daemon/locks: one holder, who is named; a dying one is waited for; what is no lock file."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lighter.daemon.locks import take_lock
from lighter.proto.errors import FailedPrecondition
from tests.processes import own_descriptors

HOLD = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(fd, fcntl.LOCK_EX)
os.ftruncate(fd, 0)
os.pwrite(fd, sys.argv[2].encode() or str(os.getpid()).encode(), 0)
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def held(path: Path, written: str = "", *more: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that holds the lock until its standard input closes, with `more` arguments."""
    holder = subprocess.Popen(
        [sys.executable, "-I", "-c", HOLD, str(path), written, *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin is not None and holder.stdout is not None
    with holder, holder.stdout, holder.stdin:
        assert holder.stdout.readline() == b"\n"
        yield holder


def is_locked(path: Path) -> bool:
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def test_the_holder_writes_its_pid_and_nobody_else_may_open_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("a long line of an older holder")
    path.chmod(0o666)
    fd = take_lock(str(path))
    try:
        assert path.read_text() == f"{os.getpid()}\n"
        assert path.stat().st_mode & 0o777 == 0o600
        assert is_locked(path)
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)
    assert not is_locked(path)


def test_f40_a_living_holder_is_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held(path) as holder:
        with pytest.raises(FailedPrecondition, match=f"manager with pid {holder.pid} holds it"):
            take_lock(str(path), wait_s=3600)


def test_a_dead_managers_spawner_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    gone = subprocess.Popen(["true"])
    gone.wait()
    with held(path, str(gone.pid)) as holder:
        with pytest.raises(FailedPrecondition, match="another process holds it"):
            take_lock(str(path), wait_s=0.1)
        assert holder.stdin is not None
        holder.stdin.close()
        os.close(take_lock(str(path), wait_s=10))
        holder.wait()


def test_what_was_to_become_a_dead_managers_spawner_is_ended(tmp_path: Path) -> None:
    """systemd-run waits for ever when systemd does not answer, and holds the lock meanwhile."""
    path = tmp_path / "lock"
    gone = subprocess.Popen(["true"])
    gone.wait()
    with held(path, str(gone.pid), "--unit=lighter-shims-0123abcd-7.scope") as holder:
        os.close(take_lock(str(path), wait_s=20))
        assert holder.wait(10) == -signal.SIGKILL


def test_a_spawner_that_was_given_the_lock_and_has_not_taken_it_is_ended(tmp_path: Path) -> None:
    """One that is stopped just then, and its manager dead: nobody is seen to hold the lock."""
    path = tmp_path / "lock"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with subprocess.Popen(
        ["lighter-spawner --instance 0123abcd", "-I", "-c", "import sys; sys.stdin.read()"],
        executable=sys.executable,
        stdin=subprocess.PIPE,
        pass_fds=[theirs.fileno()],
    ) as spawner:
        theirs.close()
        fd = take_lock(str(path))
        socket.send_fds(ours, [b"lock"], [fd])
        os.pwrite(fd, b"0     ", 0)
        os.close(fd)
        ours.close()
        for others in ("", "ffffffff"):
            with pytest.raises(FailedPrecondition, match="another process holds it"):
                take_lock(str(path), wait_s=1.2, instance=others)
        assert spawner.poll() is None
        os.close(take_lock(str(path), wait_s=20, instance="0123abcd"))
        assert spawner.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize("kind", ["directory", "link", "nowhere"])
def test_what_cannot_be_a_lock_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "lock"
    target = tmp_path / "precious"
    target.write_text("kept")
    if kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(target)
    else:
        path = tmp_path / "no" / "lock"
    before = own_descriptors()
    with pytest.raises(FailedPrecondition, match=f"lock {path}: "):
        take_lock(str(path))
    assert own_descriptors() <= before
    assert target.read_text() == "kept"
