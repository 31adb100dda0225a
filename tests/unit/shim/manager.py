"""A manager of a test's own for real shims: a real spawner and a ROUTER, and no lighterd.

It does what a test tells it and nothing more, so that a test can welcome late, not acknowledge,
vanish, come back with another generation, or send what no manager would send.
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgpack
import zmq

from lighter.daemon.locks import take_lock
from lighter.daemon.spawning.takeover import Asked
from lighter.daemon.wire import sockets
from lighter.proto import codec, errors, shim_api

INSTANCE = "7e577e57"
KIND = "0" * 64
WAIT_S = 20.0


class FakeManager:
    """One instance: directories, spawner, socket. `events` are in their order of arrival."""

    def __init__(
        self, *, environ: dict[str, str] | None = None, wait_s: float | None = None
    ) -> None:
        """`wait_s`: how long the spawner may wait for the next manager, at `next_socket`."""
        self.base = Path(tempfile.mkdtemp(prefix="lighter-shimtest-", dir="/tmp"))
        for name in ("tasks", "exits", "runc", "logs"):
            (self.base / name).mkdir()
        self.generation = 1
        self.acknowledges = True
        self.events: list[tuple[str, codec.Event]] = []
        self.hellos: list[tuple[str, codec.Hello]] = []
        self.before_welcome: list[list[bytes]] = []
        self.answers: dict[int, codec.Response | codec.Error] = {}
        self._ident = 0
        self._context = sockets.context()
        self._router: zmq.Socket[bytes] | None = None
        self.bind()
        self.shims: dict[str, Shim] = {}
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(WAIT_S)
        settings = {
            "instance": INSTANCE,
            "rehearsal": str(self.base / "rehearsal"),
            "umask": 0o022,
            "rlimits": {},
        }
        self.lock = self.base / "lock"
        self.next_socket = self.base / "next.sock"
        locks = []
        if wait_s is not None:
            lock = take_lock(str(self.lock))
            locks.append(fcntl.fcntl(lock, fcntl.F_DUPFD_CLOEXEC, 100))
            os.close(lock)
            settings["succession"] = {
                "path": str(self.next_socket),
                "kind": KIND,
                "locks": [4],
                "wait_s": wait_s,
            }
        with theirs:
            self.spawner = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-m", "lighter.shim", json.dumps(settings)],
                {"PATH": os.environ["PATH"], **(environ or {})},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, fd, number)
                    for number, fd in enumerate((theirs.fileno(), *locks), start=3)
                ],
                setsid=True,
            )
        for fd in locks:
            os.close(fd)
        assert msgpack.unpackb(self._control.recv(64)) == {"ident": shim_api.LOADED}

    # the wire

    def bind(self) -> None:
        path = str(self.base / "shims.sock")
        self._router = sockets.bind_router(self._context, path, 0o600, -1, 64)

    def vanish(self) -> None:
        """Close the socket, as a manager that is killed does."""
        assert self._router is not None
        self._router.close(0)
        self._router = None

    def come_back(self) -> None:
        """The next manager: a higher generation on the same path."""
        self.generation += 1
        self.hellos.clear()
        self.bind()

    def send(self, incarnation: str, frames: list[bytes]) -> None:
        """Whatever `frames` are, to one shim."""
        assert self._router is not None
        self._router.send_multipart([incarnation.encode(), *frames], zmq.DONTWAIT)

    def pump(self, timeout_ms: int = 100) -> bool:
        """Take in one message, if one comes in time."""
        if self._router is None or not self._router.poll(timeout_ms):
            return False
        raw, *frames = self._router.recv_multipart()
        incarnation = raw.decode()
        if frames == [b""]:
            self.greet(incarnation)
            return True
        message = codec.decode(frames)
        if incarnation not in {name for name, _ in self.hellos} and not isinstance(
            message, codec.Hello
        ):
            self.before_welcome.append(frames)
        match message:
            case codec.Hello():
                self.hellos.append((incarnation, message))
            case codec.Event():
                self.events.append((incarnation, message))
                if self.acknowledges:
                    self._acknowledge_if_there(incarnation, message.sequence)
            case codec.Response() | codec.Error():
                self.answers[message.ident] = message
        return True

    def greet(self, incarnation: str) -> None:
        welcome = codec.Welcome(self.generation, list(codec.SUPPORTED), [])
        self.send(incarnation, codec.encode(welcome))

    def acknowledge(self, incarnation: str, sequence: int) -> None:
        self.send(incarnation, codec.encode(codec.Ack(self.generation, sequence)))

    def _acknowledge_if_there(self, incarnation: str, sequence: int) -> None:
        """What a shim has told again may be read when it has heard enough, and ended."""
        try:
            self.acknowledge(incarnation, sequence)
        except zmq.ZMQError as err:
            if err.errno != errno.EHOSTUNREACH:
                raise

    def until(self, condition: Any, what: str, timeout_s: float = WAIT_S) -> None:
        """Serve the socket until `condition()`."""
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, f"not true after {timeout_s} s: {what}\n{self.reports()}"
            self.pump(20)

    def restart_idents(self) -> None:
        """As a manager that has just started."""
        self._ident = 0

    def next_ident(self) -> int:
        self._ident += 1
        return self._ident

    def answer(self, ident: int, timeout_s: float = WAIT_S) -> Any:
        """The body that answers this request. Raises the error that does."""
        self.until(lambda: ident in self.answers, f"request {ident} is answered", timeout_s)
        answer = self.answers.pop(ident)
        if isinstance(answer, codec.Error):
            raise errors.from_wire(answer.code, answer.message, answer.details)
        return answer.body

    def leave(self) -> None:
        """Let the spawner see its manager's end."""
        self._control.shutdown(socket.SHUT_RDWR)

    def die(self) -> None:
        """As `leave`, but with what the spawner has not read yet still in its socket."""
        self._control.close()

    def succeed(self, taken: Asked) -> None:
        """Be the manager that has taken the spawner over."""
        self._control = taken.socket
        self._control.settimeout(WAIT_S)
        os.close(taken.pidfd)
        assert msgpack.unpackb(self._control.recv(64)) == {"ident": shim_api.LOADED}

    # shims

    def order(self, name: str, runtime: str, **fields: Any) -> dict[str, Any]:
        """A complete order (proto/shim_api); `fields` replace its own."""
        bundle = self.base / "tasks" / name
        bundle.mkdir()
        (bundle / "rootfs").mkdir()
        incarnation = secrets.token_hex(8)
        (bundle / f"claim-{incarnation}").touch(0o600)
        return {
            "incarnation": incarnation,
            "generation": self.generation,
            "ident": self.next_ident(),
            "namespace": "default",
            "id": name,
            "instance": INSTANCE,
            "claim": str(bundle / f"claim-{incarnation}"),
            "record": str(bundle / "shim.json"),
            "bundle": str(bundle),
            "socket": str(self.base / "shims.sock"),
            "console": "",
            "exit_record": str(self.base / "exits" / f"{name}.json"),
            "runc": runtime,
            "runc_root": str(self.base / "runc"),
            "runtime_deletes": False,
            "mounts": [],
            "terminal": False,
            "stdin_open": False,
            "log": None,
            "io_policy": "drop",
            "timeout_ns": None,
            "stdin": "",
            "stdout": "",
            "stderr": "",
            "rows": 0,
            "cols": 0,
            **fields,
        }

    def fork(self, order: dict[str, Any]) -> "Shim":
        """Let the spawner fork the shim of this order."""
        self.request(order)
        packet, fds, _flags, _address = socket.recv_fds(self._control, 1 << 16, 1)
        answer = msgpack.unpackb(packet)
        shim = Shim(self, order, answer["pid"], fds[0])
        self.shims[shim.incarnation] = shim
        return shim

    def request(self, order: dict[str, Any]) -> None:
        """Ask for it, and read no answer."""
        packed = msgpack.packb(order)
        request = {"kind": "shim", "ident": order["ident"], "order": packed}
        self._control.send(msgpack.packb(request))

    def request_worker(self) -> socket.socket:
        """Its control socket. The worker waits for its job there."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            request = msgpack.packb({"kind": "worker", "ident": self.next_ident()})
            socket.send_fds(self._control, [request], [theirs.fileno()])
        _packet, fds, _flags, _address = socket.recv_fds(self._control, 1 << 16, 1)
        os.close(fds[0])
        return ours

    def run(self, name: str, runtime: str, **fields: Any) -> "Shim":
        """Fork a shim and wait for its container to be created."""
        shim = self.fork(self.order(name, runtime, **fields))
        shim.created()
        return shim

    def reports(self) -> str:
        """What the shims have written down about errors nobody caught."""
        return "\n".join(path.read_text() for path in self.base.glob("tasks/*/shim.log"))

    def close(self) -> None:
        """End the shims and their containers, and remove everything."""
        if self._router is None:
            self.bind()
        self.acknowledges = True
        try:
            for shim in self.shims.values():
                shim.close()
        finally:
            self._control.close()
            with contextlib.suppress(ChildProcessError):  # a test has done it
                os.waitpid(self.spawner, 0)
            if self._router is not None:
                self._router.close(0)
            self._context.term()
        mounted = [
            line.split()[4]
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if str(self.base) in line.split()[4]
        ]
        for point in reversed(mounted):
            subprocess.run(["umount", "-l", point], check=False)
        shutil.rmtree(self.base)
        assert not mounted, f"still mounted: {mounted}"


class Shim:
    """One real shim as its manager sees it."""

    def __init__(self, manager: FakeManager, order: dict[str, Any], pid: int, pidfd: int) -> None:
        self.manager = manager
        self.order = order
        self.incarnation: str = order["incarnation"]
        self.bundle = Path(order["bundle"])
        self.pid = pid
        self.pidfd = pidfd

    def created(self) -> int:
        """Init's pid, or the error that the create ended with."""
        return int(self.manager.answer(self.order["ident"])["pid"])

    def ask(self, method: str, *, deadline_s: float | None = None, **body: Any) -> int:
        """Send a request; returns its ident."""
        ident = self.manager.next_ident()
        deadline = None if deadline_s is None else time.monotonic_ns() + int(deadline_s * 1e9)
        request = codec.Request(self.manager.generation, ident, "task", method, deadline, {}, body)
        self.manager.send(self.incarnation, codec.encode(request))
        return ident

    def call(self, method: str, *, timeout_s: float = WAIT_S, **body: Any) -> Any:
        return self.manager.answer(self.ask(method, **body), timeout_s)

    def kill(self, signum: int = signal.SIGKILL, exec_id: str = "", everyone: bool = False) -> None:
        self.call("kill", exec_id=exec_id, signal=signum, all=everyone)

    def exec(self, exec_id: str, process: str = "", **fields: Any) -> int:
        """Run `process` (path of an OCI process); returns its pid."""
        body: dict[str, Any] = dict.fromkeys(("console", "stdin", "stdout", "stderr"), "")
        body |= {"terminal": False, "rows": 0, "cols": 0, **fields}
        return int(self.call("exec", exec_id=exec_id, process=process, **body)["pid"])

    def topics(self) -> list[str]:
        """Topics of its events in order; each sequence number counts once."""
        seen: dict[int, str] = {}
        for incarnation, event in self.manager.events:
            if incarnation == self.incarnation:
                seen.setdefault(event.sequence, event.topic.rpartition("/")[2])
        return [seen[number] for number in sorted(seen)]

    def event(self, topic: str, exec_id: str | None = None) -> dict[str, Any]:
        """The body of its first event of this topic (and exec), which is waited for."""

        def found() -> list[dict[str, Any]]:
            return [
                event.body
                for incarnation, event in self.manager.events
                if incarnation == self.incarnation
                and event.topic.endswith("/" + topic)
                and (exec_id is None or event.body["exec_id"] == exec_id)
            ]

        self.manager.until(found, f"event {topic} {exec_id or ''} of {self.bundle.name}")
        return found()[0]

    def ended(self) -> bool:
        return bool(select.select([self.pidfd], [], [], 0)[0])

    def wait_end(self) -> None:
        self.manager.until(self.ended, f"shim of {self.bundle.name} ends")

    def close(self) -> None:
        """End its container; a shim that does not end then is killed, and is a failure."""
        try:
            if not self.ended():
                try:
                    self.ask("end")
                except zmq.ZMQError:
                    pass  # it is not connected: it ends by itself, or not in time
                self.wait_end()
        except AssertionError:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            select.select([self.pidfd], [], [], 10)
            raise
        finally:
            os.close(self.pidfd)


def script(path: Path, text: str) -> str:
    """An executable shell script at `path`."""
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


def make_fifo(path: Path) -> str:
    os.mkfifo(path, 0o600)
    assert stat.S_ISFIFO(path.stat().st_mode)
    return str(path)
