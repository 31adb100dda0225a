"""How a manager comes to the spawner of the one before: the other side of lighter.shim.succession.

Shims share memory with those of the same spawner alone, and one that lives is loaded already. So a
manager that has the instance's locks asks the one that waits, if there is one, whether it is just
what this manager would start: by a digest of all that makes a spawner and its shims what they are.
Whatever is not as it should be ends in a spawner of its own, which is always right.
"""

import asyncio
import hashlib
import os
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress

import msgpack

import lighter.proto
from lighter.daemon.values import frozen
from lighter.proto.shim_api import MAX_PACKET, SAME, STAYS
from lighter.proto.version import VERSION

WAIT_S = 20.0  # how long a spawner without a manager waits for the next
ANSWER_S = 2.0  # for it to serve the next; requests wait meanwhile, and nothing else
_STATUS = (
    *("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"),
    *("NoNewPrivs", "Seccomp", "Cpus_allowed_list", "Mems_allowed_list"),
)
_FACTS = (
    "/proc/sys/kernel/random/boot_id",
    "/proc/self/loginuid",
    "/proc/self/oom_score_adj",
    "/proc/self/attr/current",
)


@frozen
class Asked:
    """A spawner that waits, and is asked whether it is of a kind. The holder closes both."""

    socket: socket.socket
    pid: int
    pidfd: int


def kind_of(made_from: object) -> str:
    """A digest of `made_from` and of what a spawner inherits or loads besides: build, interpreter,
    namespaces, rights. "" when it cannot be told.
    """
    try:
        seen = (
            made_from,
            *(VERSION, sys.version, _file(os.path.realpath(sys.executable))),
            _code(os.path.dirname(os.path.dirname(lighter.proto.__file__))),
            [os.readlink(f"/proc/self/ns/{name}") for name in sorted(os.listdir("/proc/self/ns"))],
            [line for line in _read("/proc/self/status").splitlines() if _is_told(line)],
            [_read(path) for path in _FACTS],
            (os.stat("/").st_dev, os.stat("/").st_ino),
            (os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)),
        )
    except OSError:
        return ""
    return hashlib.sha256(repr(seen).encode()).hexdigest()


def ask_waiting(path: str, kind: str) -> Asked | None:
    """Ask the spawner that waits at `path`, if one does, whether it is of this kind."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ExitStack() as undo:
        undo.callback(peer.close)
        peer.setblocking(False)
        try:
            peer.connect(path)
        except OSError:
            with suppress(OSError):
                os.unlink(path)
            return None
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, _gid = struct.unpack("iII", credentials)
        if uid != os.geteuid():
            return None
        try:
            pidfd = os.pidfd_open(pid)
            undo.callback(os.close, pidfd)
            # Into the queue of who listens there: it lives, and the pidfd is of nobody else.
            peer.send(kind.encode())
        except OSError:
            return None
        undo.pop_all()
    return Asked(peer, pid, pidfd)


def give_locks(peer: socket.socket, locks: Sequence[int]) -> bool:
    """Read the answer. False when it is none: it is of another kind, and ends, or has ended.

    Else it gets copies of the locks and of this process's outputs; its next packet says that it has
    them and serves. Raises BlockingIOError when there is no answer yet.
    """
    try:
        if peer.recv(len(SAME) + 1) != SAME:
            return False
        socket.send_fds(peer, [b"\0"], [1, 2, *locks])
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


async def let_go(ours: socket.socket, pidfd: int) -> bool:
    """Give a spawner no more requests. True when it has ended, False when it has said that it stays
    for the next manager, and has nothing of this one's any more.
    """
    loop = asyncio.get_running_loop()
    over: asyncio.Future[bool] = loop.create_future()

    def on_packet() -> None:
        try:
            packet = ours.recv(MAX_PACKET)  # an answer's pidfd is not taken
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            loop.remove_reader(ours.fileno())
        elif msgpack.unpackb(packet)["ident"] == STAYS and not over.done():
            over.set_result(False)

    def on_end() -> None:
        loop.remove_reader(pidfd)
        if not over.done():
            over.set_result(True)

    with suppress(OSError):
        ours.shutdown(socket.SHUT_WR)
    loop.add_reader(ours.fileno(), on_packet)
    loop.add_reader(pidfd, on_end)
    try:
        return await over
    finally:
        loop.remove_reader(ours.fileno())
        loop.remove_reader(pidfd)


def _code(package: str) -> list[tuple[str, tuple[int, ...]]]:
    """The files that a spawner loads. With the time of their change, which nobody can set."""
    return sorted(
        (f"{directory}/{name}", _file(f"{directory}/{name}"))
        for part in ("proto", "shim")
        for directory, _below, names in os.walk(f"{package}/{part}")
        for name in names
        if name.endswith(".py")
    )


def _file(path: str) -> tuple[int, ...]:
    found = os.stat(path)
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _is_told(line: str) -> bool:
    return line.partition(":")[0] in _STATUS


def _read(path: str) -> str:
    """ "" where the kernel has no such file."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(64 * 1024)
    except OSError:
        return ""
