"""Runs a worker as the spawner does: socket pair, fork, `serve`, `_exit`; no import after it."""

import os
import select
import socket
import time
from collections.abc import Sequence
from typing import Any

import msgpack

from lighter.proto.errors import from_wire
from lighter.shim import guard
from lighter.shim.worker.channel import MAX_PACKET
from lighter.shim.worker.main import serve

DEADLINE_S = 60.0


class Worker:
    """One forked worker; use as a context manager, which kills and reaps it."""

    def __init__(self, cwd: str | None = None) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.progress: list[dict[str, int]] = []
        self.max_rss_bytes = 0
        self.cpu_s = 0.0
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self.socket.close()
                guard.forbid_imports()
                if cwd is not None:
                    os.chdir(cwd)
                serve(theirs, parent)
            finally:
                os._exit(0)
        theirs.close()
        self.pidfd = os.pidfd_open(self.pid)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()
        if not self.ended(5):
            os.kill(self.pid, 9)
        usage = os.wait4(self.pid, 0)[2]
        self.max_rss_bytes = usage.ru_maxrss * 1024
        self.cpu_s = usage.ru_utime + usage.ru_stime
        os.close(self.pidfd)

    def ended(self, timeout_s: float) -> bool:
        """Whether the process ends within the time."""
        return bool(select.select([self.pidfd], [], [], timeout_s)[0])

    def send(self, job: dict[str, Any], fds: Sequence[int] = ()) -> None:
        socket.send_fds(self.socket, [msgpack.packb(job)], fds)

    def result(self, deadline_s: float = DEADLINE_S) -> dict[str, Any]:
        """The answer; raises the error that travelled, AssertionError if none came."""
        end = time.monotonic() + deadline_s
        while True:
            self.socket.settimeout(max(0.01, end - time.monotonic()))
            packet = self.socket.recv(MAX_PACKET)
            assert packet, "the worker ended without an answer"
            message = msgpack.unpackb(packet)
            if "progress" in message:
                self.progress.append(message["progress"])
            elif "error" in message:
                raise from_wire(*message["error"])
            else:
                result: dict[str, Any] = message["ok"]
                return result


def run_job(job: dict[str, Any], fds: Sequence[int] = (), cwd: str | None = None) -> dict[str, Any]:
    """Do one job in a worker of its own; raises the typed error it answers."""
    with Worker(cwd) as worker:
        worker.send(job, fds)
        return worker.result()


def memfd(content: bytes) -> int:
    """A descriptor to read `content` from; the caller closes it."""
    fd = os.memfd_create("input")
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def apply(content: bytes, target: str, cwd: str | None = None, **job: Any) -> dict[str, Any]:
    """Job `apply` on the bytes of a layer."""
    fd = memfd(content)
    try:
        return run_job(
            {"job": "apply", "media_type": "", "target": target, "whiteouts": "overlay", **job},
            [fd],
            cwd,
        )
    finally:
        os.close(fd)
