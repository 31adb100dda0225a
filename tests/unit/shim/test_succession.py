"""A spawner from one manager to the next: when it waits, whom it lets in, and that no order of the
last manager's is carried out once its lock is free.
"""

import json
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from lighter.daemon.locks import take_lock
from lighter.daemon.spawning.takeover import Asked, ask_waiting, give_locks
from lighter.shim.succession import _has_replaced_library
from tests.harness import await_that
from tests.unit.shim import runtimes
from tests.unit.shim.manager import INSTANCE, KIND, FakeManager, Shim
from tests.unit.shim.test_spare import await_spare

WAITING = f"lighter-spawner-waiting --instance {INSTANCE}"
WORKER = f"lighter-worker --instance {INSTANCE}"
SERVING = f"lighter-spawner --instance {INSTANCE}"
STRANGER = """
import os, socket, sys
os.setuid(65534)
peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
peer.connect(sys.argv[1])
try:
    peer.send(sys.argv[2].encode())
    print(peer.recv(64))
except OSError as error:
    print(error)
"""


class Heirs:
    """A manager with a shim, and those that come after it. Closes what they hold."""

    def __init__(self, runtime: str, wait_s: float) -> None:
        self.manager = FakeManager(wait_s=wait_s)
        self.runtime = runtime
        self._undo = ExitStack()
        self._lock = -1

    def a_shim(self, name: str) -> Shim:
        return self.manager.run(name, self.runtime)

    def lock(self) -> int:
        """The next manager's, once the last one's spawner has closed its own."""
        if self._lock < 0:
            self._lock = take_lock(str(self.manager.lock), wait_s=20)
            self._undo.callback(os.close, self._lock)
        return self._lock

    def found(self, order: dict[str, Any]) -> Shim:
        """The shim of an order whose answer nobody has read."""
        await_that(lambda: Path(order["record"]).exists(), 20, "the order is carried out")
        pid = json.loads(Path(order["record"]).read_text())["pid"]
        shim = Shim(self.manager, order, pid, os.pidfd_open(pid))
        self.manager.shims[shim.incarnation] = shim
        shim.created()
        return shim

    def take(self, kind: str = KIND) -> Asked | None:
        """The spawner, with this manager's lock; None when there is none, or of another kind."""
        lock = self.lock()
        asked = ask_waiting(str(self.manager.next_socket), kind)
        if asked is not None:
            assert select.select([asked.socket], [], [], 20)[0], "it answers"
            if not give_locks(asked.socket, [lock]):
                asked.socket.close()
                os.close(asked.pidfd)
                return None
        return asked

    def succeed(self) -> None:
        taken = self.take()
        assert taken is not None, "it is taken over"
        assert taken.pid == self.manager.spawner
        self.manager.succeed(taken)
        self._undo.close()
        self._lock = -1

    def close(self) -> None:
        self._undo.close()
        os.kill(self.manager.spawner, signal.SIGKILL)  # our child: its pid stays until it is reaped
        self.manager.close()


@pytest.fixture
def heirs(tmp_path: Path) -> Iterator[Callable[..., Heirs]]:
    made: list[Heirs] = []

    def make(wait_s: float = 60.0) -> Heirs:
        made.append(Heirs(runtimes.fake(tmp_path / "runtime"), wait_s))
        return made[-1]

    yield make
    for one in made:
        one.close()


def title(pid: int) -> str:
    return " ".join(psutil.Process(pid).cmdline()).strip()


def workers(one: Heirs) -> list[int]:
    return [pid for pid in children(one) if title(pid) == WORKER]


def is_waiting(one: Heirs) -> bool:
    return title(one.manager.spawner) == WAITING


def has_ended(one: Heirs) -> bool:
    return psutil.Process(one.manager.spawner).status() == psutil.STATUS_ZOMBIE


def children(one: Heirs) -> set[int]:
    return {child.pid for child in psutil.Process(one.manager.spawner).children()}


def test_one_spawner_serves_a_manager_after_the_other(heirs: Callable[..., Heirs]) -> None:
    one = heirs()
    shims = [one.a_shim("first")]
    for n in range(3):
        one.manager.leave() if n % 2 else one.manager.die()
        one.succeed()
        assert title(one.manager.spawner) == SERVING
        assert not one.manager.next_socket.exists()
        shims.append(one.a_shim(f"c{n}"))
    assert {psutil.Process(shim.pid).ppid() for shim in shims} == {one.manager.spawner}
    await_spare(one.manager)
    assert one.manager.reports() == ""


@pytest.mark.parametrize("unread", [False, True], ids=["all read", "an answer unread"])
def test_orders_are_carried_out_before_the_lock_is_free_or_never(
    heirs: Callable[..., Heirs], unread: bool
) -> None:
    """With an answer unread the kernel says that the connection is reset, before what is in it."""
    one = heirs()
    one.a_shim("c")
    await_spare(one.manager)
    if unread:
        ignored = one.manager.order("ignored", one.runtime)
        one.manager.request(ignored)
        one.found(ignored)
        await_spare(one.manager)
    os.kill(one.manager.spawner, signal.SIGSTOP)
    orders = [one.manager.order(f"late{n}", one.runtime) for n in range(4)]
    for order in orders:
        one.manager.request(order)
    one.manager.die()
    os.kill(one.manager.spawner, signal.SIGCONT)
    one.lock()
    forked = children(one)
    one.succeed()
    one.a_shim("after")
    claimed = [not os.path.exists(order["claim"]) for order in orders]
    if unread:
        assert claimed == [False] * 4
        assert len(forked) == 2
    else:
        assert {one.found(order).pid for order in orders} < forked
        assert len(forked) == 5


def test_a_spare_of_the_last_manager_is_not_used(heirs: Callable[..., Heirs]) -> None:
    one = heirs()
    shim = one.a_shim("c")
    spare = await_spare(one.manager)
    one.manager.die()
    one.lock()
    assert children(one) == {shim.pid}, "it has ended, and is reaped"
    one.succeed()
    assert one.a_shim("next").pid != spare.pid


def test_without_shims_it_ends_with_its_manager(heirs: Callable[..., Heirs]) -> None:
    one = heirs()
    await_spare(one.manager)
    one.manager.die()
    await_that(lambda: has_ended(one), 20, "it ends")
    assert one.take() is None


def test_with_a_worker_at_work_it_ends_with_its_manager(heirs: Callable[..., Heirs]) -> None:
    """What the worker does is done for that manager, and dies with the spawner."""
    one = heirs()
    one.a_shim("c")
    with one.manager.request_worker():
        await_that(lambda: workers(one), 20, "it has its title")
        (worker,) = workers(one)
        one.manager.die()
        await_that(lambda: has_ended(one), 20, "it ends")
        await_that(lambda: not psutil.pid_exists(worker), 20, "the worker too")


def test_a_worker_that_has_ended_is_forgotten(heirs: Callable[..., Heirs]) -> None:
    one = heirs()
    one.a_shim("c")
    await_spare(one.manager)  # no other is forked then
    one.manager.request_worker().close()
    await_that(lambda: len(children(one)) == 2, 20, "the worker is reaped")
    one.manager.die()
    one.succeed()


def test_it_ends_with_the_last_of_its_shims(heirs: Callable[..., Heirs]) -> None:
    one = heirs()
    shims = [one.a_shim("a"), one.a_shim("b")]
    one.manager.die()
    await_that(lambda: is_waiting(one), 20, "it waits")
    shims.pop().kill()
    one.manager.until(lambda: len(children(one)) == 1, "one shim has ended")
    assert is_waiting(one)
    shims.pop().kill()
    one.manager.until(lambda: has_ended(one), "it ends")
    assert not one.manager.next_socket.exists()


def test_it_does_not_wait_for_ever(heirs: Callable[..., Heirs]) -> None:
    one = heirs(wait_s=0.5)
    shim = one.a_shim("c")
    one.manager.die()
    await_that(lambda: has_ended(one), 20, "it ends")
    assert not one.manager.next_socket.exists()
    assert not shim.ended()


def test_while_it_waits_it_can_be_told_to_end(heirs: Callable[..., Heirs]) -> None:
    """At a shutdown the scope that it is in is stopped by SIGTERM."""
    one = heirs()
    one.a_shim("c")
    os.kill(one.manager.spawner, signal.SIGTERM)
    one.a_shim("it serves")
    one.manager.die()
    await_that(lambda: is_waiting(one), 20, "it waits")
    one.lock()  # free: all that comes before is done
    await_that(lambda: catches_no_term(one), 20, "it can be told")
    os.kill(one.manager.spawner, signal.SIGTERM)
    await_that(lambda: has_ended(one), 20, "it ends")
    assert one.take() is None
    assert not one.manager.next_socket.exists(), "who finds nobody there removes it"


def catches_no_term(one: Heirs) -> bool:
    status = Path(f"/proc/{one.manager.spawner}/status").read_text()
    (ignored,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigIgn"))
    return not int(ignored, 16) & 1 << (signal.SIGTERM - 1)


def test_a_manager_that_wants_another_kind_gets_none(heirs: Callable[..., Heirs]) -> None:
    one = heirs()
    shim = one.a_shim("c")
    one.manager.die()
    assert one.take("1" * 64) is None
    await_that(lambda: has_ended(one), 20, "it ends: a manager has come, and it is not for that")
    assert not shim.ended()


@pytest.mark.parametrize("says", ["", KIND], ids=["nothing", "what it wants"])
def test_a_manager_that_dies_meanwhile_leaves_it_to_the_next(
    heirs: Callable[..., Heirs], says: str
) -> None:
    one = heirs()
    one.a_shim("c")
    one.manager.die()
    one.lock()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        peer.connect(str(one.manager.next_socket))
        if says:
            peer.send(says.encode())
            assert peer.recv(64)
    await_that(lambda: is_waiting(one), 20, "it waits again")
    one.succeed()
    one.a_shim("next")


def test_another_user_is_not_let_in(heirs: Callable[..., Heirs]) -> None:
    one = heirs()
    one.a_shim("c")
    one.manager.die()
    one.lock()
    path = one.manager.next_socket
    assert path.stat().st_mode & 0o777 == 0o600
    argv = [sys.executable, "-I", "-c", STRANGER, str(path), KIND]
    one.manager.base.chmod(0o711)
    path.chmod(0o666)
    said = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert "b'same'" not in said.stdout and said.returncode == 0, said
    one.succeed()


def test_what_it_writes_goes_to_the_manager_it_has(heirs: Callable[..., Heirs]) -> None:
    """A pipe of the last one's is closed while it waits, or its reader would not see the end."""
    one = heirs()
    one.a_shim("c")
    outputs = [f"/proc/{one.manager.spawner}/fd/{fd}" for fd in (1, 2)]
    one.manager.die()
    await_that(lambda: is_waiting(one), 20, "it waits")
    assert [os.readlink(path) for path in outputs] == [os.devnull] * 2
    one.succeed()
    assert [os.readlink(path) for path in outputs] == [
        os.readlink(f"/proc/self/fd/{fd}") for fd in (1, 2)
    ]


def test_a_replaced_library_is_seen(tmp_path: Path) -> None:
    """As after an update of libc: the file that is mapped has no name any more."""
    assert not _has_replaced_library()
    for name, seen in (("data", False), ("libc.so.6", True)):
        path = tmp_path / name
        path.write_bytes(bytes(mmap.PAGESIZE))
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
            path.unlink()
            assert _has_replaced_library() is seen
    assert not _has_replaced_library()
