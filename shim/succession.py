"""How a spawner comes to its next manager: shims share memory with those of the same spawner alone.

When its manager has gone, a spawner that has shims lets go of all that was that manager's and waits
for the next one, for a limited time, at a socket below the state directory. Its copies of the locks
are closed once nothing of the dead manager's can be read any more; so a manager that has got them
meets a spawner that carries out nobody's orders. It lets in its own user alone, and a manager that
would start just such a spawner: by a digest (lighter.daemon.spawning.takeover), which its own
manager made before it started it.

While it waits it ends at SIGTERM, and with the last of its shims: it is kept for their memory.
"""

import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgpack

from lighter.proto import shim_api
from lighter.shim import files

_ANSWER_S = 2.0  # who has connected and says nothing keeps the next one out for so long
_INPUT, _OUTPUTS = 0, (1, 2)
_WAITING = "spawner-waiting"


class Succession:
    """From one manager to the next. Owns the copies of the locks."""

    __slots__ = ("_count", "_entitle", "_kind", "_locks", "_path", "_wait_s")

    def __init__(self, values: dict[str, Any], entitle: Callable[[str], None]) -> None:
        """`values`: {path, kind, locks, wait_s}; `entitle` names the process for `ps`."""
        self._path: str = values["path"]
        self._kind: bytes = values["kind"].encode()
        self._locks: list[int] = values["locks"]
        self._count = len(self._locks)
        self._wait_s: float = values["wait_s"]
        self._entitle = entitle

    def await_next(
        self, before: socket.socket, wakeup: int, has_shims: Callable[[], bool]
    ) -> socket.socket | None:
        """The socket of the next manager, whose locks are held from here on; None: end.

        `before` is the last one's, from which nothing is read any more; it is closed. `wakeup`
        becomes readable when a child has ended.
        """
        try:
            listener = self._listen()
        except OSError:
            return None  # as one that waits for nobody
        with listener:
            self._let_go(before)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            try:
                return self._accept(listener, wakeup, has_shims)
            finally:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                self._remove(listener)

    def _listen(self) -> socket.socket:
        """With the locks still held: who gets them next finds it."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        mask = os.umask(0o177)
        try:
            with suppress(FileNotFoundError):
                os.unlink(self._path)
            listener.bind(self._path)
            listener.listen(1)
        except OSError:
            listener.close()
            raise
        finally:
            os.umask(mask)
        return listener

    def _let_go(self, before: socket.socket) -> None:
        for fd in self._locks:
            os.close(fd)  # not unlocked: that manager may live yet, and have told it to go
        self._locks = []
        os.chdir("/")  # where it was started from may have to be unmounted
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd in (_INPUT, *_OUTPUTS):
            os.dup2(null, fd)
        os.close(null)
        self._entitle(_WAITING)
        with suppress(OSError):
            before.send(msgpack.packb({"ident": shim_api.STAYS}))
        before.close()

    def _remove(self, listener: socket.socket) -> None:
        """Its file, unless another spawner's is there."""
        with suppress(OSError):
            listener.close()
            probe = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
            with probe:
                probe.setblocking(False)
                try:
                    probe.connect(self._path)
                except ConnectionRefusedError:
                    os.unlink(self._path)

    def _accept(
        self, listener: socket.socket, wakeup: int, has_shims: Callable[[], bool]
    ) -> socket.socket | None:
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        poll.register(wakeup, select.POLLIN)
        end = time.monotonic() + self._wait_s
        while (left_s := end - time.monotonic()) > 0 and has_shims():
            for fd, _events in poll.poll(left_s * 1000):
                if fd == wakeup:
                    os.read(fd, 512)
                    continue
                peer, _address = listener.accept()
                peer.settimeout(_ANSWER_S)
                try:
                    wanted = self._greet(peer)
                except OSError:
                    wanted = None
                if wanted:
                    peer.settimeout(None)
                    return peer
                peer.close()
                if wanted is not None:
                    return None
                self._entitle(_WAITING)
        return None

    def _greet(self, peer: socket.socket) -> bool | None:
        """True: it is the next manager. False: a manager has come that this one is not for.

        None: it was nobody, or has gone.
        """
        size = struct.calcsize("iII")
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        if struct.unpack("iII", credentials)[1] != os.geteuid():
            return None
        kind = peer.recv(len(self._kind) + 1)
        if not kind:
            return None
        if kind != self._kind or _has_replaced_library():
            return False
        self._entitle("spawner")  # before it has a lock, by which it is found and ended
        peer.send(shim_api.SAME)
        _packet, fds, _flags, _from = socket.recv_fds(peer, 64, 4, socket.MSG_CMSG_CLOEXEC)
        if len(fds) != len(_OUTPUTS) + self._count:
            for fd in fds:
                os.close(fd)
            return None
        for fd, number in zip(fds, _OUTPUTS, strict=False):
            os.dup2(fd, number)
            os.close(fd)
        self._locks = fds[len(_OUTPUTS) :]
        return True


def _has_replaced_library() -> bool:
    """Whether a library that it has loaded is not the installed one any more: libc's, for one.

    Shims and workers of a manager that is started again after an update are to have the new one.
    """
    try:
        maps = files.read_small("/proc/self/maps").splitlines()
    except OSError:
        return True
    return any(line.endswith(b" (deleted)") and b".so" in line for line in maps)
