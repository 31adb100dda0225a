"""A shim's whole life, played by the spawner before its first fork.

What runs for the first time makes the interpreter write: it specialises code, fills its caches of
attributes, takes memory. In the spawner that happens once and is shared; in a shim it would happen
in memory of its own, a megabyte of it. So the real `Shim` is run here from claim to end, a few
times over, with a manager at the other end of its socket that asks for what managers ask for.

Nothing of it is a container: the runtime is echo(1), init and the exec are cat(1), there is no
mount, and the cgroup is nobody's. Nothing is left behind, also of a life that was cut short: no
descriptor, process or file.
"""

import contextlib
import gc
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from types import CoroutineType
from typing import Any

import setproctitle

from lighter.proto import codec, events, faults, zmtp
from lighter.proto.errors import DeadlineExceeded
from lighter.shim import cgroup, copies, linux, reaper, runcstate, shim
from lighter.shim.cgroup import Cgroup
from lighter.shim.link import Link
from lighter.shim.loop import READ, Loop
from lighter.shim.runc import ENVIRONMENT
from lighter.shim.spawn import spawn
from lighter.shim.task import Task

# CPython 3.11 specialises a function after eight calls (PEP 659). One life more comes before: it
# shows which code is run.
LIVES = 10
# Of all lives. On a host that is too slow for them a spawner has to serve all the same, and its
# manager waits 30 s for it, in which it has to be loaded too.
LIMIT_S = 8.0
RUNTIME = "/bin/echo"
ACTOR = "/bin/cat"

_READY = b"\x05READY\x0bSocket-Type\0\0\0\x06ROUTER\x08Identity\0\0\0\0"
_ASKED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("start", {}),
    ("exec", {"exec_id": "x", "process": "", "terminal": False, "stdin": "", "stderr": ""}),
    ("kill", {"exec_id": "x", "signal": signal.SIGKILL, "all": False}),
    ("kill", {"exec_id": "", "signal": signal.SIGKILL, "all": False}),
)


def rehearse(directory: str, birth: Callable[[], None] = lambda: None) -> None:
    """Play it in `directory`, which is made and removed. Raises OSError, LighterError, also when it
    is not over in LIMIT_S.

    `birth` is what a child of the spawner does before it is a shim. After an error only memory is
    lost. Where fault points are planned, which are meant for shims, nothing is played unless that
    is asked for too (proto/faults.py).
    """
    if faults.forbids_rehearsal():
        return
    before = _open_fds()
    aside = faults.put_aside()
    try:
        _rehearse(directory, birth)
    except Exception as err:
        err.__traceback__ = None  # its frames would keep a life
        _give_back(before)
        raise
    finally:
        faults.put_back(aside)


def _rehearse(directory: str, birth: Callable[[], None]) -> None:
    _clear(directory)
    os.mkdir(directory, 0o700)
    before = os.open(".", os.O_PATH | os.O_CLOEXEC)
    end = time.monotonic() + LIMIT_S
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
            listener.bind(directory + "/s")
            listener.listen(1)
            reaper.arm()
            with _silence():
                with copies.code_together():
                    _live(directory, listener, birth, end)
                for _ in range(LIVES):
                    _live(directory, listener, birth, end)
    finally:
        os.fchdir(before)
        os.close(before)
        _clear(directory)


def _give_back(before: set[int]) -> None:
    """Close what was opened since `before` by a life that has not come to its end.

    What is left of the life goes first: a coroutine or a socket that went later would close a
    number that is somebody else's by then.
    """
    signal.set_wakeup_fd(-1)
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 0)
    gc.collect()
    for fd in _open_fds() - before:
        os.close(fd)


def _open_fds() -> set[int]:
    directory = "/proc/self/fd"
    names = os.listdir(directory)
    # The one by which the names were read is closed again.
    return {int(name) for name in names if os.path.lexists(f"{directory}/{name}")}


def _live(directory: str, listener: socket.socket, birth: Callable[[], None], end: float) -> None:
    """Everything that a shim does from its fork on, except what would change the spawner."""
    birth()
    _touch_kernel(directory)
    with contextlib.ExitStack() as undo:
        _play(directory + "/task", listener, undo, end)
    if time.monotonic() >= end:
        raise DeadlineExceeded(f"play lives: not over in {LIMIT_S:g} s")


def no_order(directory: str) -> dict[str, Any]:
    """An order that cannot be carried out, for `warm`: nothing of what it names is there."""
    return {**_order(directory + "/nothing", directory + "/nothing/s"), "log": None}


def warm(order: dict[str, Any]) -> None:
    """Touch, in a fresh fork, the memory that the first steps of a life touch.

    Nothing comes of it: `order` is `no_order`'s, and the descriptors are given back.
    """
    shim.claim(order, 0, "")
    loop = Loop(_ignore)
    children = reaper.Reaper(loop)
    Task(loop, children, order, cgroup.of_process)
    Link(loop, order["socket"], order["incarnation"], dict, _ignore)
    with contextlib.suppress(FileNotFoundError):
        linux.mount_all([("overlay", "overlay", ["ro", "lowerdir=/"])], order["bundle"])
    children.close()
    loop.close()


def _ignore(_what: object) -> None:
    pass


def _touch_kernel(directory: str) -> None:
    """Calls of which a life plays no part: the kernel is asked, and nothing is changed."""
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 0)
    cgroup.of_process(os.getpid(), "/none")
    nowhere = directory + "/nowhere"
    with contextlib.suppress(FileNotFoundError):
        linux.mount_all([("overlay", "overlay", ["ro", "lowerdir=/"])], nowhere)
    with contextlib.suppress(FileNotFoundError):
        linux.umount(nowhere)
    state, group = directory + "/state", directory + "/group"
    os.mkdir(group)
    os.mkdir(state)
    with open(state + "/state.json", "wb") as file:
        file.write(b" ".join(runcstate.NOTHING_MORE))
    runcstate.delete(state, Cgroup({"pids": group}, ""))


def _nobodys_cgroup(directory: str) -> Cgroup:
    """Files that look like an empty cgroup: nothing that is asked of it ends a process."""
    os.mkdir(directory)
    for name, text in (
        ("cgroup.procs", ""),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n"),
        ("cgroup.event_control", ""),
    ):
        with open(f"{directory}/{name}", "w", encoding="ascii") as file:
            file.write(text)
    return Cgroup({"memory": directory, "pids": directory}, "")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Standard output leads nowhere, as a shim's does: the runtime inherits it."""
    before = os.dup(1)
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, 1)
    os.close(null)
    try:
        yield
    finally:
        os.dup2(before, 1)
        os.close(before)


def _play(bundle: str, listener: socket.socket, undo: contextlib.ExitStack, end: float) -> None:
    """One life, cut short at `end`."""
    os.makedirs(bundle + "/rootfs")
    undo.callback(_clear, bundle)
    output = os.pipe2(os.O_CLOEXEC)
    for fd in output:
        undo.callback(os.close, fd)
    for name in ("init", "exec-x"):
        pid = _actor(undo)
        with open(f"{bundle}/{name}.pid", "w", encoding="ascii") as file:
            file.write(str(pid))
    order = _order(bundle, listener.getsockname())
    _leave_state(bundle + "/rehearsal", undo)
    with open(order["claim"], "wb"):
        pass
    shim.claim(order, 0, "")
    shim.title(order)
    shim.enter(setproctitle.getproctitle(), bundle)
    group = _nobodys_cgroup(bundle + "/cgroup")
    one = shim.Shim(order, 0, "", find_cgroup=lambda _pid, _path: group)
    undo.callback(one.close)
    undo.callback(_end_expected, one.reaper)
    undo.callback(_Manager(one, listener, f"/proc/{os.getpid()}/fd/{output[1]}").close)
    shim.to_null(1)  # as it does already
    one.loop.call_later(end - time.monotonic(), one.loop.stop)
    one.run()
    if time.monotonic() >= end:
        _end_coroutines()


def _end_coroutines() -> None:
    """Of a life that was cut short: they give back what they hold while its loop is there still.

    In this process nobody else has any.
    """
    for one in gc.get_objects():
        if type(one) is CoroutineType:
            one.close()


def _leave_state(directory: str, undo: contextlib.ExitStack) -> None:
    """What runc leaves of a created container, whose init has been let go by somebody."""
    os.mkdir(directory)
    words = (runcstate.NO_HOOK_AT_START, *runcstate.NOTHING_MORE)
    with open(directory + "/state.json", "wb") as file:
        file.write(b"{" + b",".join(words) + b"}")
    os.mkfifo(directory + "/exec.fifo")
    init = os.open(directory + "/exec.fifo", os.O_RDWR | os.O_CLOEXEC)
    undo.callback(os.close, init)
    os.write(init, b"0")


def _clear(directory: str) -> None:
    """Remove it with all that is in it; there are no links and no mounts below."""
    for path, directories, names in os.walk(directory, topdown=False):
        for name in names:
            os.unlink(f"{path}/{name}")
        for name in directories:
            os.rmdir(f"{path}/{name}")
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(directory)


def _actor(undo: contextlib.ExitStack) -> int:
    """A child that waits to be killed, on a pipe."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    undo.callback(os.close, write_end)
    try:
        pid = spawn([ACTOR], ENVIRONMENT, (read_end,))
    finally:
        os.close(read_end)
    undo.callback(_end, pid)
    return pid


def _end(pid: int) -> None:
    """Kill and reap a child, unless the life has done it."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _end_expected(children: reaper.Reaper) -> None:
    """A runtime too, whose life was cut short before it had ended."""
    for pid in children.expected:
        _end(pid)


def _order(bundle: str, address: str) -> dict[str, Any]:
    return {
        "incarnation": "0" * 16,
        "generation": 1,
        "ident": 1,
        "namespace": "default",
        "id": "rehearsal",
        "instance": "",
        "claim": bundle + "/claim",
        "record": bundle + "/shim.json",
        "bundle": bundle,
        "socket": address,
        "console": "",
        "exit_record": bundle + "/exit.json",
        "runc": RUNTIME,
        "runc_root": bundle,
        "shim_starts": True,
        "runtime_deletes": False,
        "mounts": [],
        "terminal": False,
        "stdin_open": True,
        "log": {"dir": bundle + "/log", "max_bytes": 1 << 20, "max_files": 2},
        "io_policy": "drop",
        "timeout_ns": int(LIMIT_S * 1e9),
        "stdin": "",
        "stdout": "",
        "stderr": "",
        "rows": 0,
        "cols": 0,
    }


class _Manager:
    """Welcomes the shim, acknowledges its events, and asks the next thing after each answer."""

    def __init__(self, one: shim.Shim, listener: socket.socket, stdout: str) -> None:
        self._one = one
        self._listener = listener
        self._stdout = stdout
        self._decoder = zmtp.Decoder()
        self._ident = 1
        self._peer: socket.socket | None = None
        one.loop.watch(listener.fileno(), READ, self._on_connect)

    def close(self) -> None:
        if self._peer is not None:
            self._peer.close()

    def _on_connect(self, _events: int) -> None:
        self._one.loop.unwatch(self._listener.fileno())
        self._peer, _address = self._listener.accept()
        self._peer.send(zmtp.GREETING + zmtp.command(_READY))
        self._one.loop.watch(self._peer.fileno(), READ, self._on_bytes)

    def _on_bytes(self, _events: int) -> None:
        assert self._peer is not None, "it is watched"
        for frames in self._decoder.feed(self._peer.recv(64 * 1024)):
            if frames == [b""]:
                self._send(codec.Welcome(1, list(codec.SUPPORTED), []))
            else:
                self._take(codec.decode(frames))

    def _take(self, message: codec.Message) -> None:
        match message:
            case codec.Event(_generation, sequence, topic, _at, body):
                self._send(codec.Ack(1, sequence))
                if topic == events.EXIT and body["exec_id"]:
                    self._ask()
            # The answer to the exec's kill is no cue: its exit is.
            case codec.Response(_generation, ident, _) if ident < len(_ASKED):
                self._ask()

    def _ask(self) -> None:
        method, body = _ASKED[self._ident - 1]
        self._ident += 1
        if method == "exec":
            body = {**body, "stdout": self._stdout, "rows": 0, "cols": 0}
        self._send(codec.Request(1, self._ident, "task", method, None, {}, body))

    def _send(self, message: codec.Message) -> None:
        assert self._peer is not None, "it is connected"
        self._peer.send(zmtp.encode(codec.encode(message)))


def problem(error: Exception) -> str:
    """One line for whoever reads the spawner's standard error."""
    return f"lighter-spawner: rehearse: {error}; shims take more memory than they should\n"
