"""Attached processes: streams, signals, terminals, and managers that come and go meanwhile."""

import fcntl
import importlib.util
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lighter.ctl.pump import Flow
from lighter.proto.errors import NotFound
from tests.fakes.manager import HOLD, Ask, FakeManager, FakeProcess
from tests.typist import Typist
from tests.unit.ctl.conftest import CTL, PATIENCE_S, Ctl, Start
from tests.unit.ctl.test_verbs import created

ENDED = {"exit_status": 5, "exited_at": 1, "cause": ""}


class Container:
    """A container whose life the test conducts."""

    def __init__(self, manager: FakeManager) -> None:
        self._manager = manager
        self.process: FakeProcess
        manager.on("containers.create", created)
        manager.on("tasks.create", self._create)
        manager.on("tasks.wait", HOLD)
        for method in ("tasks.start", "tasks.close_stdin", "tasks.kill", "tasks.resize"):
            manager.on(method, {})
        manager.on("tasks.delete", NotFound("delete c1: no such task"))

    def _create(self, ask: Ask) -> Any:
        self.created_with = ask.body
        self.process = FakeProcess(ask.body)
        return {"pid": 42}

    def attach(self, ask: Ask) -> Any:
        self.process = FakeProcess(ask.body)
        self.process.write(b"prompt$ ")
        return {"terminal": True}

    def started(self) -> Ask:
        """The wait that ctl has asked for, once the container is started."""
        self._manager.asked("tasks.start")
        return self._manager.asked("tasks.wait")


@pytest.fixture
def container(manager: FakeManager) -> Iterator[Container]:
    container = Container(manager)
    yield container
    if hasattr(container, "process"):
        container.process.end()


def read_exactly(fd: int, wanted: bytes) -> None:
    """Read from a terminal or pipe until `wanted` has come."""
    came = b""
    end = time.monotonic() + PATIENCE_S
    while wanted not in came:
        ready, _, _ = select.select([fd], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"{wanted!r} did not come, only {came!r}"
        came += os.read(fd, 65536)


def test_streams_go_both_ways_and_end(
    manager: FakeManager, container: Container, start: Start
) -> None:
    ctl = start("run", "--rm", "busybox", "c1", "cat")
    wait = container.started()
    assert ctl.stdin and ctl.stdout and ctl.stderr
    ctl.stdin.write(b"typed\n")
    ctl.stdin.flush()
    assert container.process.read() == b"typed\n"
    container.process.write(b"out\n")
    container.process.write(b"err\n", "stderr")
    assert ctl.stdout.readline() == b"out\n"
    assert ctl.stderr.readline() == b"err\n"
    ctl.stdin.close()
    assert container.process.read() == b""
    assert manager.asked("tasks.close_stdin").body == {"id": "c1", "exec_id": ""}
    wait.reply(ENDED)
    with pytest.raises(subprocess.TimeoutExpired):
        ctl.wait(0.3)  # its output has not ended
    container.process.write(b"last\n")
    container.process.end()
    assert ctl.stdout.read() == b"last\n"
    assert ctl.wait(PATIENCE_S) == 5


def test_a_slow_reader_loses_nothing(
    manager: FakeManager, container: Container, start: Start
) -> None:
    ctl = start("run", "--rm", "busybox", "c1")
    wait = container.started()
    data = os.urandom(500_000)
    container.process.write(data)
    wait.reply(ENDED)
    container.process.end()
    assert ctl.stdout
    assert ctl.stdout.read() == data
    assert ctl.wait(PATIENCE_S) == 5


def test_who_shares_an_empty_input_waits_for_it() -> None:
    """The other reader was faster: waiting for the target, which has room, would be a busy loop."""
    (source, writer), (reader, target) = os.pipe(), os.pipe()
    try:
        flow = Flow(source, target)
        flow.move()
        assert flow.open and flow.interest() == (source, select.POLLIN)
        os.write(writer, b"more")
        flow.move()
        assert os.read(reader, 10) == b"more"
    finally:
        for fd in (source, writer, reader, target):
            os.close(fd)


def test_output_is_appended_to_a_file(container: Container, start: Start, tmp_path: Any) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"before\n")
    with open(path, "ab") as file:
        ctl = start("run", "--rm", "busybox", "c1", stdout=file.fileno(), stdin=subprocess.DEVNULL)
        wait = container.started()
        container.process.write(b"after\n")
        wait.reply(ENDED)
        container.process.end()
        assert ctl.wait(PATIENCE_S) == 5
    assert path.read_bytes() == b"before\nafter\n"


def test_when_nobody_reads_ctl_ends(container: Container, start: Start) -> None:
    ctl = start("run", "--rm", "busybox", "c1", "yes")
    container.started()
    assert ctl.stdout
    ctl.stdout.close()
    ctl.stdout = None
    container.process.write(b"y\n")
    assert ctl.wait(PATIENCE_S) == 141


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1]
)
def test_signals_are_the_containers(
    manager: FakeManager, container: Container, start: Start, number: signal.Signals
) -> None:
    ctl = start("run", "--rm", "busybox", "c1")
    wait = container.started()
    ctl.send_signal(number)
    assert manager.asked("tasks.kill").body == {
        "id": "c1",
        "exec_id": "",
        "signal": int(number),
        "all": False,
    }
    wait.reply({**ENDED, "exit_status": 128 + number})
    container.process.end()
    assert ctl.wait(PATIENCE_S) == 128 + number


def test_who_presses_ctrl_c_three_times_means_ctl(
    manager: FakeManager, container: Container, start: Start
) -> None:
    ctl = start("run", "--rm", "busybox", "c1")
    container.started()
    for _ in range(2):
        ctl.send_signal(signal.SIGINT)
        manager.asked("tasks.kill")
    ctl.send_signal(signal.SIGINT)
    assert ctl.wait(PATIENCE_S) == 130
    assert ctl.stderr and b"Traceback" not in ctl.stderr.read()


def test_ctrl_c_ends_a_wait(manager: FakeManager, start: Start) -> None:
    manager.on("tasks.wait", HOLD)
    ctl = start("tasks", "wait", "c1")
    manager.asked("tasks.wait")
    ctl.send_signal(signal.SIGINT)
    assert ctl.wait(PATIENCE_S) == 130
    assert ctl.stderr and ctl.stderr.read().strip() == b""


# managers that come and go


def test_an_attached_run_outlives_a_restart(
    manager: FakeManager, container: Container, start: Start
) -> None:
    ctl = start("run", "--rm", "busybox", "c1")
    container.started()
    manager.stop()
    container.process.write(b"meanwhile\n")
    assert ctl.stdout
    assert ctl.stdout.readline() == b"meanwhile\n"
    manager.generation += 1
    manager.start()
    wait = manager.asked("tasks.wait")
    assert wait.generation == manager.generation
    assert wait.body["reissued"] is True
    wait.reply(ENDED)
    container.process.end()
    assert ctl.wait(PATIENCE_S) == 5


def test_what_may_have_been_done_fails_at_a_restart(manager: FakeManager, start: Start) -> None:
    manager.on("tasks.pause", HOLD)
    ctl = start("tasks", "pause", "c1")
    manager.asked("tasks.pause")
    manager.restart()
    assert ctl.wait(PATIENCE_S) == 1
    assert ctl.stderr and b"ended meanwhile" in ctl.stderr.read()
    assert not manager.was_asked("tasks.pause")


def test_events_go_on_after_a_restart(manager: FakeManager, start: Start) -> None:
    manager.on("events.subscribe", HOLD)

    def event(sequence: int) -> dict[str, Any]:
        body = {"container_id": "c"}
        head = {"sequence": sequence, "timestamp": 1_000_000_000, "namespace": "n"}
        return {**head, "topic": f"/t/{sequence}", "event": body}

    ctl = start("events")
    ask = manager.asked("events.subscribe")
    assert (ask.namespace, ask.body["since"]) == ("", None)
    ask.items([event(4), event(5)])
    assert ctl.stdout
    assert [ctl.stdout.readline().split()[2] for _ in range(2)] == [b"/t/4", b"/t/5"]
    manager.restart()
    ask = manager.asked("events.subscribe")
    assert ask.body["since"] == 5
    ask.reply([event(6)])
    assert ctl.stdout.readline().split()[2] == b"/t/6"
    assert ctl.wait(PATIENCE_S) == 0


def test_credit_is_given_for_what_was_used(manager: FakeManager, start: Start) -> None:
    manager.on("logs.read", HOLD)
    ctl = start("logs", "-f", "c1")
    ask = manager.asked("logs.read")
    for number in range(10):
        ask.items([{"timestamp": number + 1, "stream": 1, "data": b"x" * 65536}])
    assert ctl.stdout
    assert len(ctl.stdout.read(10 * 65536)) == 10 * 65536
    assert manager.credits.get(timeout=PATIENCE_S).size_bytes >= 256 * 1024
    ctl.send_signal(signal.SIGINT)
    assert ctl.wait(PATIENCE_S) == 130


# terminals


class Screen:
    """ctl in a terminal of its own."""

    def __init__(self, address: str, *args: str) -> None:
        self.master, slave = pty.openpty()
        self.resize(30, 100)
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.process = subprocess.Popen(
            [str(CTL), *args],
            env={**os.environ, "LIGHTER_ADDRESS": address},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )

    def resize(self, rows: int, cols: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def mode(self) -> list[Any]:
        return termios.tcgetattr(self.slave)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def screen(manager: FakeManager, container: Container) -> Iterator[Screen]:
    """`ctl run -t` with the terminal raw: what is typed from now on goes to the container."""
    screen = Screen(manager.path, "run", "--rm", "-t", "busybox", "c1", "sh")
    yield screen
    screen.close()


def raw(screen: Screen, container: Container) -> Ask:
    """Wait until ctl pumps: a byte that is typed has reached the container."""
    wait = container.started()
    os.write(screen.master, b"\r")
    assert container.process.read() in (b"\r", b"\n")
    return wait


def test_a_terminal_has_its_size_and_comes_back(
    manager: FakeManager, container: Container, screen: Screen
) -> None:
    wait = raw(screen, container)
    assert (container.created_with["rows"], container.created_with["cols"]) == (30, 100)
    assert not container.process.has("stderr")
    assert not screen.mode()[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
    os.write(screen.master, b"\x03")
    assert container.process.read() == b"\x03"
    container.process.write(b"prompt$ ")
    read_exactly(screen.master, b"prompt$ ")
    screen.resize(40, 120)
    screen.process.send_signal(signal.SIGWINCH)
    body = manager.asked("tasks.resize").body
    assert (body["rows"], body["cols"]) == (40, 120)
    wait.reply(ENDED)
    container.process.end()
    assert screen.process.wait(PATIENCE_S) == 5
    assert screen.mode() == screen.before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_from_elsewhere_puts_the_terminal_back(
    manager: FakeManager, container: Container, screen: Screen, number: signal.Signals
) -> None:
    raw(screen, container)
    screen.process.send_signal(number)
    assert screen.process.wait(PATIENCE_S) == 128 + number
    assert screen.mode() == screen.before
    assert not manager.was_asked("tasks.kill")


def test_the_detach_keys_leave_the_container_alone(
    manager: FakeManager, container: Container, screen: Screen
) -> None:
    raw(screen, container)
    os.write(screen.master, b"\x10x")
    assert container.process.read() == b"\x10x"
    os.write(screen.master, b"\x10\x11")
    assert screen.process.wait(PATIENCE_S) == 0
    assert screen.mode() == screen.before
    assert not manager.was_asked("tasks.close_stdin")
    read_exactly(screen.master, b"detached from c1")


@pytest.mark.parametrize("verb", ["start -a", "attach --no-stdin"])
def test_who_looks_at_a_terminal_alone_leaves_it_by_ctrl_c(
    manager: FakeManager, container: Container, verb: str
) -> None:
    """Nothing that is typed reaches the container, so no key may be taken from ctl."""
    manager.on("containers.get", {"container": {"spec": '{"process": {"terminal": true}}'}})
    manager.on("tasks.attach", container.attach)
    typist = Typist([str(CTL), "--address", manager.path, *verb.split(), "c1"])
    try:
        manager.asked("tasks.attach" if "attach" in verb else "tasks.start")
        if "start" in verb:
            container.process.write(b"prompt$ ")
        typist.expect(rb"prompt\$ ")
        typist.type(b"\x03")
        assert typist.wait(PATIENCE_S) == 130
    finally:
        typist.close()
    assert not manager.was_asked("tasks.kill") and not manager.was_asked("tasks.delete")


# a manager that ends and does not come back

OTHER_PROCESS = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("fake", sys.argv[1])
fake = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fake)
with fake.FakeManager(sys.argv[2]) as manager:
    for method in ("tasks.pause", "tasks.wait"):
        manager.on(method, fake.HOLD)
    print("bound", flush=True)
    for method in sys.stdin:
        manager.asked(method.strip())
        print("asked", flush=True)
"""


@pytest.fixture
def mortal(socket_path: str) -> Iterator["subprocess.Popen[str]"]:
    """A fake manager in a process of its own: whoever waits for it can see it end."""
    file = importlib.util.find_spec("tests.fakes.manager")
    assert file is not None and file.origin is not None
    argv = [sys.executable, "-c", OTHER_PROCESS, file.origin, socket_path]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stdout.readline() == "bound\n"
        yield process
        process.kill()


def asked_of(mortal: "subprocess.Popen[str]", method: str) -> None:
    assert mortal.stdin and mortal.stdout
    mortal.stdin.write(f"{method}\n")
    mortal.stdin.flush()
    assert mortal.stdout.readline() == "asked\n"


def test_a_call_fails_when_its_manager_ends(mortal: "subprocess.Popen[str]", start: Start) -> None:
    ctl = start("tasks", "pause", "c1")
    asked_of(mortal, "tasks.pause")
    mortal.kill()
    assert ctl.wait(PATIENCE_S) == 1
    assert ctl.stderr and b"the manager ended" in ctl.stderr.read()


def test_a_wait_stays_until_the_next_manager(
    mortal: "subprocess.Popen[str]", start: Start, socket_path: str
) -> None:
    ctl = start("--connect-timeout", "100ms", "tasks", "wait", "c1")
    asked_of(mortal, "tasks.wait")
    mortal.kill()
    mortal.wait()
    with pytest.raises(subprocess.TimeoutExpired):
        ctl.wait(1)
    with FakeManager(socket_path, generation=2) as manager:
        manager.on("tasks.wait", ENDED)
        assert ctl.stdout and ctl.stdout.read() == b"5\n"
        assert ctl.wait(PATIENCE_S) == 0


MEGABYTES = b"what the runtime says over its work\n" * (3 << 15)


@pytest.mark.parametrize("verb", ["run", "exec"])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_a_runtime_prints_over_a_create_is_not_waited_for(
    manager: FakeManager, ctl: Ctl, verb: str, stream: str
) -> None:
    """It is answered only when all of it is through, which is more than a pipe holds."""

    def create(ask: Ask) -> Any:
        process = FakeProcess(ask.body)
        process.write(MEGABYTES, stream)
        process.end()
        return {"pid": 42, "exec_id": "x"}

    manager.on("containers.create", {"id": "c", "warnings": []})
    manager.on("tasks.create", create)
    manager.on("tasks.exec", create)
    manager.on("tasks.start", {"pid": 42})
    manager.on("tasks.wait", {"exit_status": 0, "exited_at": 1, "cause": ""})
    manager.on("tasks.delete", {"exit_status": 0, "exited_at": 1, "cause": ""})
    manager.on("tasks.close_stdin", {})
    done = ctl("run", "--rm", "image", "c", "true") if verb == "run" else ctl("exec", "c", "true")
    assert (done.returncode, getattr(done, stream)) == (0, MEGABYTES)


@pytest.mark.parametrize("deleted", [True, False])
def test_an_ended_exec_is_deleted_by_the_wait_or_else_after_it(
    manager: FakeManager, ctl: Ctl, deleted: bool
) -> None:
    def execute(ask: Ask) -> Any:
        FakeProcess(ask.body).end()
        return {"pid": 42, "exec_id": "x"}

    end = {"exit_status": 3, "exited_at": 1, "cause": ""}
    manager.on("tasks.exec", execute)
    manager.on("tasks.wait", {**end, "deleted": True} if deleted else end)
    manager.on("tasks.delete", end)
    assert ctl("exec", "c", "true").returncode == 3
    assert manager.asked("tasks.wait").body["delete"] is True
    assert manager.was_asked("tasks.delete") is not deleted
