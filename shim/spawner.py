"""The warm parent: it has imported what shims and workers need, and forks them on request.

It is executed (not forked) by the manager, in a session of its own, and holds no state: when its
socket to the manager closes it ends, or if it has shims waits for the next (shim/succession.py). A
fork of it costs about a millisecond and shares nearly all of its memory. It is single-threaded, and
so are its children. The lock of the instance is open here too, so that the next manager knows when
the last request of this one can no longer be carried out; a shim does not keep it. While nothing is
asked of it, it has one shim ready (shim/spare.py).
"""

import gc
import json
import os
import resource
import select
import signal
import socket
import sys
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

import msgpack
import setproctitle

from lighter.proto import shim_api
from lighter.proto.faults import hit
from lighter.shim import files, guard, immortal, linux, packing, reaper, rehearsal, shim, spare
from lighter.shim.spare import Spare
from lighter.shim.succession import Succession
from lighter.shim.worker.main import serve as serve_job

KEEP_FD = 3  # the manager's socket
SPARE_MS = 40  # after the last request, when its container is made and the processors are free


class Settings:
    """What containers must inherit although the manager changed it for itself."""

    __slots__ = ("instance", "rehearsal", "rlimits", "succession", "umask")

    def __init__(self, text: str) -> None:
        values = json.loads(text)
        self.instance: str = values["instance"]
        self.rehearsal: str = values["rehearsal"]
        self.umask: int = values["umask"]
        self.rlimits: dict[int, tuple[int, int]] = {
            int(name): (soft, hard) for name, (soft, hard) in values["rlimits"].items()
        }
        self.succession: dict[str, Any] | None = values.get("succession")

    def apply(self) -> None:
        os.umask(self.umask)
        for number, limits in self.rlimits.items():
            try:
                resource.setrlimit(number, limits)
            except (OSError, ValueError):
                pass  # raising a hard limit needs CAP_SYS_RESOURCE; it was the manager's to keep


def start_time(pid: int) -> int:
    """Field 22 of /proc/<pid>/stat (proc(5)): with the pid it names one process of this boot."""
    return int(files.read_small(f"/proc/{pid}/stat").rpartition(b")")[2].split()[19])


def boot_id() -> str:
    return files.read_small("/proc/sys/kernel/random/boot_id").decode().strip()


def _leave(keep: list[int], low: int) -> None:
    """Become a process of its own: nothing of the spawner's stays open from `low` on but `keep`."""
    signal.set_wakeup_fd(-1)
    try:
        os.setsid()
    except PermissionError:
        pass  # the spawner itself, which rehearses this
    for fd in sorted(keep):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _entitle(kind: str, instance: str) -> None:
    setproctitle.setproctitle(f"lighter-{kind} --instance {instance}")


def _await_order(
    title: str, instance: str, no_order: dict[str, Any], pipe: int
) -> tuple[bytes, int]:
    """As a spare: touch what a shim touches first; an order, b"" for none, and the start time."""
    _entitle(title, instance)
    start = start_time(os.getpid())
    rehearsal.warm(no_order)
    return spare.await_order(pipe), start


def _be_shim(order: bytes, start: int, boot: str) -> None:
    shim.main(msgpack.unpackb(order), start, boot)


def _rehearse_birth(settings: Settings, no_order: dict[str, Any]) -> None:
    """What the spawner does for a child, and what the child does before it is a shim, as far as it
    leaves the spawner what it is.
    """
    _rehearse_service(settings, no_order)
    none = 1 << 20  # above any descriptor that is open
    _leave([none], none)
    theirs, ours = os.pipe2(os.O_CLOEXEC)
    os.write(ours, msgpack.packb(no_order))
    os.close(ours)
    order, start = _await_order("spawner", settings.instance, no_order, theirs)
    _be_shim(order, start, "")  # as far as the claim, which is not there
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 0)


def _rehearse_service(settings: Settings, no_order: dict[str, Any]) -> None:
    """What the spawner does from one fork to the next: all that it writes to meanwhile is another's
    than its last child's. The children here find nothing to do.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        one = Spawner(theirs, settings, no_order)
        try:
            one.rehearse(ours)
        finally:
            one.close()


class Spawner:
    """Serves a manager until it is gone, and then the next, if it is worth that."""

    def __init__(
        self, manager: socket.socket, settings: Settings, no_order: dict[str, Any]
    ) -> None:
        self._manager = manager
        self._pid = os.getpid()
        self._settings = settings
        self._boot_id = boot_id()
        self._wakeup, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        reaper.arm()
        self._no_order = no_order
        self._spare: Spare | None = None
        self._wants_spare = True
        self._workers: set[int] = set()  # not reaped yet

    def serve(self) -> None:
        """Until there is no manager, and none comes for the memory of the shims that live."""
        self._serve_manager()
        if self._settings.succession is None:
            return
        entitle = partial(_entitle, instance=self._settings.instance)
        succession = Succession(self._settings.succession, entitle)
        # A worker ends with this process, as it must with the manager that it works for.
        while self._reap() and not self._workers:
            manager = succession.await_next(self._manager, self._wakeup, self._reap)
            if manager is None:
                return
            self._manager = manager
            self._wants_spare = True
            self._serve_manager()

    def _serve_manager(self) -> None:
        try:
            self._manager.send(msgpack.packb({"ident": shim_api.LOADED}))
        except BrokenPipeError:
            return  # the manager has gone meanwhile
        poll = select.poll()
        poll.register(self._manager, select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        while True:
            ready = poll.poll(SPARE_MS if self._wants_spare else None)
            if not ready:
                self._make_spare()
            for fd, _events in ready:
                if fd == self._wakeup:
                    os.read(fd, 512)
                elif not self._serve_one():
                    self._end_spare()
                    return
            self._reap()

    def rehearse(self, manager: socket.socket) -> None:
        """Serve requests, with a spare and without; the manager is at the socket's other end."""
        self._make_spare()
        order = msgpack.packb(self._no_order)
        for ident in (1, 2):
            manager.send(msgpack.packb({"kind": "shim", "ident": ident, "order": order}))
            self._serve_one()
            packet, fds, _flags, _from = socket.recv_fds(manager, shim_api.MAX_PACKET, 1)
            for fd in fds:
                os.close(fd)
            pid = msgpack.unpackb(packet).get("pid")
            if pid:
                os.waitpid(pid, 0)
        self._make_spare()
        self._end_spare()
        self._reap()

    def close(self) -> None:
        """End its spare and take the wakeup back: for a process that goes on without."""
        self._end_spare()
        os.close(signal.set_wakeup_fd(-1))
        os.close(self._wakeup)

    def _serve_one(self) -> bool:
        try:
            packet, fds, _flags, _from = socket.recv_fds(
                self._manager, shim_api.MAX_PACKET, 4, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            return False
        if not packet:
            return False
        hit("spawner.asked")
        request = msgpack.unpackb(packet)
        try:
            if request["kind"] != "shim" or not self._use_spare(request):
                self._fork(request, fds)
        except OSError as err:
            answer = {"ident": request["ident"], "error": err.strerror or str(err)}
            with suppress(BrokenPipeError, ConnectionResetError):
                self._manager.send(msgpack.packb(answer))
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _fork(self, request: dict[str, Any], fds: list[int]) -> None:
        pid = os.fork()
        if pid == 0:
            self._run_child(request, fds)
        if request["kind"] == "worker":
            self._workers.add(pid)
        # The child may have ended already: it is not reaped before its pidfd is made.
        pidfd = os.pidfd_open(pid)
        try:
            self._reply(request["ident"], pid, start_time(pid), pidfd)
        finally:
            os.close(pidfd)

    def _make_spare(self) -> None:
        """Fork the next shim. What forbids it now forbids the next request too, which says so."""
        self._wants_spare = False
        try:
            theirs, ours = os.pipe2(os.O_CLOEXEC)
        except OSError:
            return
        os.set_blocking(ours, False)
        try:
            pid = os.fork()
            if pid == 0:
                self._run_child({"kind": "spare"}, [theirs])
            self._spare = Spare(pid, start_time(pid), ours)
        except OSError:
            os.close(ours)
        os.close(theirs)

    def _use_spare(self, request: dict[str, Any]) -> bool:
        """Let the spare carry out a request; False when there is none."""
        self._wants_spare = True
        one, self._spare = self._spare, None
        if one is None:
            return False
        try:
            if not one.hand_over(request["order"]):
                return False
            self._reply(request["ident"], one.pid, one.start, one.pidfd)
        finally:
            one.close()
        return True

    def _end_spare(self) -> None:
        """Kill and reap the idle spare."""
        if self._spare is not None:
            signal.pidfd_send_signal(self._spare.pidfd, signal.SIGKILL)
            self._spare.close()
            os.waitpid(self._spare.pid, 0)
            self._spare = None

    def _run_child(self, request: dict[str, Any], fds: list[int]) -> NoReturn:
        status = 1
        try:
            _leave(fds, KEEP_FD)  # the manager's socket included
            if request["kind"] == "worker":
                _entitle("worker", self._settings.instance)
                control = socket.socket(fileno=fds[0])
                serve_job(control, self._pid)
            elif request["kind"] == "shim":
                _be_shim(request["order"], start_time(os.getpid()), self._boot_id)
            else:
                instance, no_order = self._settings.instance, self._no_order
                order, start = _await_order("spare", instance, no_order, fds[0])
                if order:
                    _be_shim(order, start, self._boot_id)
            status = 0
        except BaseException as err:
            # Nobody reads a child's standard error in production; in a test this is the only word.
            os.write(2, f"{guard.format_error(err)}\n".encode(errors="replace"))
        finally:
            os._exit(status)

    def _reply(self, ident: int, pid: int, start: int, pidfd: int) -> None:
        hit("spawner.forked")
        answer = {"ident": ident, "pid": pid, "start": start}
        try:
            socket.send_fds(self._manager, [msgpack.packb(answer)], [pidfd])
        except (BrokenPipeError, ConnectionResetError):
            pass  # the manager is gone; the next one learns of the shim by its claim

    def _reap(self) -> bool:
        """Whether there are children that live."""
        while True:
            try:
                pid, _status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            self._workers.discard(pid)
            if self._spare is not None and pid == self._spare.pid:
                self._spare.close()
                self._spare = None  # the next request is served without


def main() -> None:
    """Entry of the spawner's process: settings in argv[1], the manager's socket as descriptor 3."""
    settings = Settings(sys.argv[1])
    settings.apply()
    _entitle("spawner", settings.instance)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    manager = socket.socket(fileno=KEEP_FD)
    os.set_inheritable(KEEP_FD, False)
    guard.forbid_imports()
    no_order = rehearsal.no_order(settings.rehearsal)
    try:
        rehearsal.rehearse(settings.rehearsal, partial(_rehearse_birth, settings, no_order))
    except Exception as err:  # memory that shims do not share is worth no host without a spawner
        sys.stderr.write(rehearsal.problem(err))
    gc.collect()
    gc.disable()
    immortal.make_immortal()
    _gaps = packing.fill_gaps()
    gc.freeze()
    Spawner(manager, settings, no_order).serve()
    os._exit(0)  # with the gaps filled until here; immortal objects are not for taking apart
