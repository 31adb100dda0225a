"""The manager's side of the spawner: starts it, asks it for shims and workers, replaces it.

The spawner is a program of its own (see lighter.shim.spawner), reached by one SOCK_SEQPACKET
socket. It inherits the instance's locks, so that the next manager knows when the last order of
this one can no longer be carried out. One that has shims then waits for that manager, which takes
it over (lighter.daemon.spawning.takeover).

It says when it has loaded, and is asked from then on. Under systemd it is started through a program
that asks systemd for a scope (see lighter.daemon.spawning.placement). When that fails, or takes
longer than SCOPE_S, the next one is started without.
"""

import asyncio
import fcntl
import json
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgpack

from lighter.daemon.spawning.placement import Placement
from lighter.daemon.spawning.takeover import (
    ANSWER_S,
    WAIT_S,
    ask_waiting,
    give_locks,
    kind_of,
    let_go,
)
from lighter.daemon.values import frozen
from lighter.proto.errors import Unavailable
from lighter.proto.paths import State
from lighter.proto.shim_api import LOADED, MAX_PACKET

log = logging.getLogger("lighter.spawn")

_FIRST_FD = 3  # the spawner's: its socket, the locks
_FIRST_FREE_FD = 100  # above the numbers that the spawner's descriptors are moved to
_SEND_BUFFER = 1 << 20
CLOSE_S = 2.0
REPLY_S = 20.0
RESTART_S = 0.2
# systemd takes 10 ms, loading 0.1 s, but many seconds on a starved machine or a slow disk;
# more means that systemd does not answer.
SCOPE_S = 30.0
REPLACED_S = 60.0  # how long a request waits for the next spawner when there is none


@frozen
class Inherited:
    """How the manager was started, which is what containers must inherit."""

    umask: int
    rlimits: dict[int, tuple[int, int]]

    @classmethod
    def of_this_process(cls) -> "Inherited":
        """Read at start, before the manager changes any of it."""
        umask = os.umask(0o022)
        os.umask(umask)
        numbers = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
        return cls(umask, {n: resource.getrlimit(n) for n in set(numbers)})


@frozen
class Child:
    """A process the spawner has forked. The holder closes `pidfd`."""

    pid: int
    start: int
    pidfd: int


class Spawner:
    """One living spawner process at a time."""

    def __init__(
        self,
        instance: str,
        state: State,
        inherited: Inherited,
        lock_fds: Sequence[int],
        program: Sequence[str],
        placement: Placement,
    ) -> None:
        self._instance = instance
        self._state = state
        self._inherited = inherited
        self._lock_fds = tuple(lock_fds)
        self._placement = placement
        self._program = tuple(program)
        self._socket: socket.socket | None = None
        self._pidfd = -1
        self._waiting: dict[int, asyncio.Future[Child]] = {}
        self._idents = 0
        self._closing = False
        self._loaded = asyncio.Event()
        self._taken = False  # the living one was another manager's
        self._asked = False  # it has not said yet that it is of this one's kind
        self._in_scope = False  # the living one was started through systemd
        self._has_loaded = False  # the living one; it may hang since
        self._started_at = 0.0
        self._too_late: asyncio.TimerHandle | None = None
        self.pid = 0

    def start(self) -> None:
        """Take over the spawner that waits, or execute one. Requests wait until it has loaded."""
        self._started_at = time.monotonic()
        kind = self._kind(self._placement.wants_scope)
        found = ask_waiting(self._state.next_socket, kind) if kind else None
        if found is None:
            self._execute(kind)
            return
        self._attach(found.socket, found.pid, found.pidfd)
        self._taken = self._asked = True
        self._in_scope = False  # it is in the scope, if any, that another manager has made
        loop = asyncio.get_running_loop()
        loop.add_reader(found.socket.fileno(), self._on_answer, found.socket)
        self._too_late = loop.call_later(ANSWER_S, self._give_up, ANSWER_S)

    def _on_answer(self, ours: socket.socket) -> None:
        try:
            self._asked = not give_locks(ours, self._lock_fds)
        except BlockingIOError:
            return
        if self._asked:
            log.info("spawner pid=%d is not taken over: it is of another kind", self.pid)
            self._drop("it was another manager's")
            self._restart()
        else:
            loop = asyncio.get_running_loop()
            loop.add_reader(ours.fileno(), self._on_readable, ours)
            if self._too_late is not None:
                self._too_late.cancel()
            self._too_late = loop.call_later(ANSWER_S, self._give_up, ANSWER_S)

    def _kind(self, in_scope: bool) -> str:
        environment = self._environment()
        # Fault points are counted by the process that passes them: it is for one manager alone.
        own = os.urandom(8) if len(environment) > 1 else b""
        return kind_of((self._program, self._settings(), environment, in_scope, own))

    def _settings(self) -> dict[str, Any]:
        return {
            "instance": self._instance,
            "rehearsal": self._state.rehearsal,
            "umask": self._inherited.umask,
            "rlimits": self._inherited.rlimits,
        }

    def _environment(self) -> dict[str, str]:
        faults = {name: value for name, value in os.environ.items() if name.startswith("FAULT")}
        return {**faults, "PATH": os.environ.get("PATH", os.defpath)}

    def _execute(self, kind: str | None = None) -> None:
        """`kind`: the next one's, where it was made just now."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        moved = [
            fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_FD)
            for fd in (theirs.fileno(), *self._lock_fds)
        ]
        launcher = self._placement.launcher()
        argv = [*launcher, *self._program]
        self._started_at = time.monotonic()
        settings = self._settings()
        # Before it loads a file: of one that is replaced meanwhile, the next manager sees another.
        if kind is None:
            kind = self._kind(bool(launcher))
        if kind:
            settings["succession"] = {
                "path": self._state.next_socket,
                "kind": kind,
                "locks": [_FIRST_FD + 1 + n for n in range(len(self._lock_fds))],
                "wait_s": WAIT_S,
            }
        try:
            pid = os.posix_spawn(
                argv[0],
                [*argv, json.dumps(settings)],
                self._environment(),
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, fd, number)
                    for number, fd in enumerate(moved, start=_FIRST_FD)
                ],
                setsid=True,
                setsigmask=[],
            )
        finally:
            theirs.close()
            for fd in moved:
                os.close(fd)
        self._attach(ours, pid, os.pidfd_open(pid))
        self._taken = self._asked = False
        self._placement.started(pid, launcher)
        self._in_scope = bool(launcher)
        if launcher:
            self._too_late = asyncio.get_running_loop().call_later(SCOPE_S, self._give_up, SCOPE_S)

    def _attach(self, ours: socket.socket, pid: int, pidfd: int) -> None:
        self._socket, self.pid, self._pidfd = ours, pid, pidfd
        self._has_loaded = False
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        loop.add_reader(ours.fileno(), self._on_readable, ours)
        loop.add_reader(pidfd, self._on_death)

    def _give_up(self, seconds: float) -> None:
        where = " in a scope" if self._in_scope else ""
        log.warning("start spawner%s: it has not loaded in %g s", where, seconds)
        with suppress(OSError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        if self._asked:
            # It has neither lock nor order of this manager's; frozen, say, it does not even die.
            self._drop("it did not answer")
            self._restart()

    def _on_loaded(self) -> None:
        if self._too_late is not None:
            self._too_late.cancel()
            self._too_late = None
        self._placement.loaded()
        self._has_loaded = True
        self._loaded.set()
        took_ms = (time.monotonic() - self._started_at) * 1000
        if self._taken:
            log.info("spawner taken over pid=%d ms=%.0f", self.pid, took_ms)
        else:
            log.info("spawner loaded pid=%d scope=%s ms=%.0f", self.pid, self._in_scope, took_ms)

    async def close(self) -> None:
        """Let the spawner go, and wait until it has ended, or says that it stays for the next."""
        self._closing = True
        if self._pidfd < 0 or self._socket is None or self._asked:
            self._drop("the manager is stopping")
            self._loaded.set()
            return
        loop = asyncio.get_running_loop()
        pidfd, self._pidfd = self._pidfd, -1
        ours, self._socket = self._socket, None
        loop.remove_reader(pidfd)
        loop.remove_reader(ours.fileno())
        self._drop("the manager is stopping")
        self._loaded.set()  # who waits for a spawner hears that there will be none
        ending = False
        with ours:
            try:
                async with asyncio.timeout(CLOSE_S):
                    ending = await let_go(ours, pidfd)
            except TimeoutError:
                with suppress(ProcessLookupError):  # of another parent, which has reaped it
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                ending = await let_go(ours, pidfd)
            finally:
                os.close(pidfd)
        if ending:
            self._reap()

    def _reap(self) -> int:
        """Take the exit status of the spawner, which has ended."""
        try:
            return os.waitpid(self.pid, 0)[1]
        except ChildProcessError:
            return 0

    async def fork_shim(self, order: dict[str, Any]) -> Child:
        """Fork a shim that carries out `order` (proto/shim_api). Raises Unavailable.

        After an error the shim may exist all the same: who withdraws its claim knows.
        """
        # Packed for itself: what the spawner unpacks is memory that no shim shares any more.
        request = {"kind": "shim", "order": msgpack.packb(order)}
        return await self._ask(request, (), "fork shim")

    async def fork_worker(self, fd: int, what: str) -> Child:
        """Fork a worker whose job comes by the socket `fd`, which stays the caller's.

        Raises Unavailable, which says `what` it was for.
        """
        return await self._ask({"kind": "worker"}, (fd,), what)

    async def _ask(self, request: dict[str, Any], fds: Sequence[int], what: str) -> Child:
        try:
            async with asyncio.timeout(REPLACED_S):
                # Who is woken does not look whether it has died in the same moment.
                while not self._loaded.is_set():
                    await self._loaded.wait()
        except TimeoutError as err:
            raise Unavailable(f"{what}: there is no spawner") from err
        if self._closing:
            raise Unavailable(f"{what}: the manager is stopping")
        assert self._socket is not None, "it is loaded only while there is a socket"
        self._idents += 1
        ident = self._idents
        packet = msgpack.packb({"ident": ident, **request})
        if len(packet) > MAX_PACKET:
            raise Unavailable(f"{what}: the request has {len(packet)} bytes, {MAX_PACKET} fit")
        answer: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._waiting[ident] = answer
        try:
            socket.send_fds(self._socket, [packet], list(fds))
            async with asyncio.timeout(REPLY_S):
                try:
                    return await answer
                except asyncio.CancelledError:
                    if not answer.cancelled() and answer.exception() is None:
                        os.close(answer.result().pidfd)  # it came in this very moment
                    raise
        except TimeoutError as err:
            # It does nothing for anybody else either; its successor will, and is waited for.
            self._loaded.clear()
            with suppress(OSError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            raise Unavailable(f"{what}: the spawner did not answer in {REPLY_S:g} s") from err
        except OSError as err:
            raise Unavailable(f"{what}: {err.strerror}") from err
        finally:
            self._waiting.pop(ident, None)

    def _on_readable(self, ours: socket.socket) -> None:
        try:
            packet, fds, _flags, _from = socket.recv_fds(
                ours, MAX_PACKET, 1, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            packet, fds = b"", []
        if not packet:
            asyncio.get_running_loop().remove_reader(ours.fileno())
            return
        answer = msgpack.unpackb(packet)
        if answer["ident"] == LOADED:
            self._on_loaded()
            return
        waiting = self._waiting.get(answer["ident"])
        if "error" in answer:
            if waiting is not None and not waiting.done():
                waiting.set_exception(Unavailable(f"fork process: {answer['error']}"))
        elif waiting is None or waiting.done():
            for fd in fds:
                os.close(fd)
        else:
            waiting.set_result(Child(answer["pid"], answer["start"], fds[0]))

    def _on_death(self) -> None:
        self._drop("the spawner died")
        log.warning("spawner ended pid=%d status=%d", self.pid, self._reap())
        if self._in_scope and not self._has_loaded:
            log.warning("start spawner in a scope: failed; the next is moved out by hand")
            self._placement.refuse()
        if not self._closing:
            asyncio.get_running_loop().call_later(RESTART_S, self._restart)

    def _restart(self) -> None:
        if self._closing:
            return
        try:
            self._execute()
        except OSError as err:
            log.error("start spawner: %s", err)
            asyncio.get_running_loop().call_later(RESTART_S, self._restart)

    def _drop(self, why: str) -> None:
        loop = asyncio.get_running_loop()
        if self._socket is not None:
            loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
            self._loaded.clear()
        if self._too_late is not None:
            self._too_late.cancel()
            self._too_late = None
        if self._pidfd >= 0:
            loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(Unavailable(f"fork process: {why}"))
