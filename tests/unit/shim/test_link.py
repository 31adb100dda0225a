"""A shim's end of the wire, over real sockets: who is heard, what is resent, what is dropped."""

import contextlib
import errno
import os
import random
import resource
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lighter.proto import codec, errors, shim_api
from lighter.proto.calls import MAX_OUTSTANDING
from lighter.shim.link import Link
from lighter.shim.loop import READ, Loop
from tests.harness import await_that
from tests.unit.shim import runtimes
from tests.unit.shim.manager import FakeManager, Shim
from tests.unit.shim.test_loop import Scarce
from tests.unit.shim.test_shim import children, descriptors


@pytest.fixture
def shim(manager: FakeManager, tmp_path: Path) -> Shim:
    return manager.run("c", runtimes.fake(tmp_path / "runtime"))


def switches(pid: int) -> int:
    """Voluntary context switches of all threads of a process."""
    return sum(
        int(line.split()[1])
        for status in Path(f"/proc/{pid}/task").glob("*/status")
        for line in status.read_text().splitlines()
        if line.startswith("voluntary")
    )


def test_nothing_is_sent_before_the_welcome(manager: FakeManager, tmp_path: Path) -> None:
    greet, manager.greet = manager.greet, lambda incarnation: seen.append(incarnation)  # type: ignore[method-assign]
    seen: list[str] = []
    shim = manager.fork(manager.order("c", runtimes.fake(tmp_path / "runtime")))
    manager.until(lambda: seen, "the shim connects")
    # It has made its container by now and would say so.
    manager.until(lambda: (shim.bundle / "init.pid").exists(), "the container is made")
    while manager.pump(200):
        pass
    assert not manager.hellos
    assert not manager.events
    assert not manager.answers
    manager.greet = greet  # type: ignore[method-assign]
    manager.greet(shim.incarnation)
    assert shim.created() > 0
    shim.event("create")
    assert manager.before_welcome == []


def test_the_hello_says_who_and_where(manager: FakeManager, shim: Shim) -> None:
    incarnation, hello = manager.hellos[0]
    assert incarnation == shim.incarnation
    assert hello.version == codec.VERSION
    identity = hello.identity
    assert identity["kind"] == "shim"
    assert identity["pid"] == shim.pid
    assert identity["id"] == "c"
    assert identity["namespace"] == "default"
    assert identity["bundle"] == str(shim.bundle)
    started = Path(f"/proc/{shim.pid}/stat").read_text().rpartition(")")[2].split()[19]
    assert identity["start"] == int(started)
    assert identity["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_f10_events_are_sent_again_until_they_are_acknowledged(
    manager: FakeManager, shim: Shim
) -> None:
    shim.event("create")
    manager.acknowledges = False
    shim.call("start")
    shim.event("start")
    manager.vanish()
    manager.events.clear()
    manager.come_back()
    shim.event("start")
    assert [event.topic for _, event in manager.events] == ["/tasks/start"]
    assert manager.events[0][1].generation == manager.generation
    # Acknowledged at last, it is not told a third manager.
    manager.acknowledges = True
    manager.acknowledge(shim.incarnation, manager.events[0][1].sequence)
    with pytest.raises(errors.Unimplemented):
        shim.call("no_such_method")
    manager.vanish()
    manager.events.clear()
    manager.come_back()
    manager.until(lambda: manager.hellos, "it says hello")
    with pytest.raises(errors.Unimplemented):
        shim.call("no_such_method")
    assert manager.events == []


def test_an_exit_while_there_is_no_manager_is_told_to_the_next(
    manager: FakeManager, shim: Shim
) -> None:
    shim.call("start")
    shim.event("start")
    pid = shim.event("create")["pid"]
    manager.vanish()
    os.kill(pid, 9)
    record = Path(shim.order["exit_record"])
    end = time.monotonic() + 10
    while not record.exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    manager.come_back()
    assert shim.event("exit")["exit_status"] == 137
    shim.event("closed")
    shim.wait_end()
    assert not record.exists()
    assert shim.topics() == ["create", "start", "exit", "closed"]


def test_f18_it_ends_only_when_all_is_acknowledged(manager: FakeManager, shim: Shim) -> None:
    manager.acknowledges = False
    shim.kill()
    shim.event("closed")
    assert Path(shim.order["exit_record"]).exists()
    manager.pump(300)
    assert not shim.ended()
    manager.acknowledge(shim.incarnation, len(shim.topics()))
    shim.wait_end()
    assert not Path(shim.order["exit_record"]).exists()


def test_f08_requests_of_another_generation_are_dropped(manager: FakeManager, shim: Shim) -> None:
    init = shim.event("create")["pid"]
    for generation in (0, manager.generation - 1, manager.generation + 1, 1 << 62):
        request = codec.Request(
            generation, 900 + generation % 7, "task", "kill", None, {}, _kill_body()
        )
        manager.send(shim.incarnation, codec.encode(request))
    with pytest.raises(errors.Unimplemented):
        shim.call("no_such_method")
    assert not manager.answers
    os.kill(init, 0)


def _kill_body() -> dict[str, object]:
    return {"exec_id": "", "signal": 9, "all": False}


def test_a_late_request_is_refused_and_not_executed(manager: FakeManager, shim: Shim) -> None:
    init = shim.event("create")["pid"]
    with pytest.raises(errors.DeadlineExceeded, match="too late"):
        manager.answer(shim.ask("kill", deadline_s=-0.001, **_kill_body()))
    os.kill(init, 0)
    manager.answer(shim.ask("kill", deadline_s=10, **_kill_body()))
    shim.event("exit")


def test_a_repeated_ident_is_executed_once(manager: FakeManager, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    runtime = runtimes.fake(tmp_path / "runtime", start=f"echo start >>{calls}; sleep 0.3")
    shim = manager.run("c", runtime)
    ident = manager.next_ident()
    request = codec.Request(manager.generation, ident, "task", "start", None, {}, {})
    for _ in range(5):
        manager.send(shim.incarnation, codec.encode(request))
    manager.answer(ident)
    assert calls.read_text() == "start\n"


def test_f73_a_request_that_comes_again_after_its_answer_is_dropped(
    manager: FakeManager, tmp_path: Path
) -> None:
    calls = tmp_path / "calls"
    shim = manager.run("c", runtimes.fake(tmp_path / "runtime", update=f"echo >>{calls}"))
    shim.event("create")
    ident = shim.ask("update", resources="r")
    manager.answer(ident)
    request = codec.Request(
        manager.generation, ident, "task", "update", None, {}, {"resources": "r"}
    )
    for replayed in (request, request._replace(ident=ident - 1)):
        manager.send(shim.incarnation, codec.encode(replayed))
    shim.call("update", resources="r")
    assert calls.read_text() == "\n\n"
    assert not {ident, ident - 1} & manager.answers.keys()
    # The next manager counts anew.
    manager.vanish()
    manager.come_back()
    manager.until(lambda: manager.hellos, "it says hello to the next")
    request = request._replace(generation=manager.generation, ident=1)
    manager.send(shim.incarnation, codec.encode(request))
    manager.answer(1)
    assert calls.read_text() == "\n\n\n"


def test_another_service_is_not_answered_with_deeds(manager: FakeManager, shim: Shim) -> None:
    ident = manager.next_ident()
    request = codec.Request(manager.generation, ident, "image", "kill", None, {}, _kill_body())
    manager.send(shim.incarnation, codec.encode(request))
    with pytest.raises(errors.Unimplemented, match="image"):
        manager.answer(ident)


def test_the_17th_outstanding_request_is_refused_at_once(
    manager: FakeManager, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    runtime = runtimes.fake(
        tmp_path / "runtime", exec=f': <{gate}; sleep 1000 & printf %s $! >"$pid_file"'
    )
    shim = manager.run("c", runtime)
    shim.call("start")
    body = dict.fromkeys(("process", "console", "stdin", "stdout", "stderr"), "")
    asked = [
        shim.ask("exec", exec_id=f"x{n}", terminal=False, rows=0, cols=0, **body)
        for n in range(MAX_OUTSTANDING)
    ]
    with pytest.raises(errors.Unavailable, match="update task: 16 requests"):
        shim.call("update", resources="r")
    shim.kill(signum=signal.SIGCONT)  # never refused, nor is an end
    with gate.open("w"):
        manager.until(lambda: set(asked) <= manager.answers.keys(), "the 16 are answered")
    shim.kill()
    shim.event("closed")


def test_what_a_manager_that_is_gone_has_asked_holds_nobody_up(
    manager: FakeManager, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    runtime = runtimes.fake(tmp_path / "runtime", update=f": <{gate}")
    shim = manager.run("c", runtime)
    shim.call("start")
    shim.event("start")
    for _ in range(MAX_OUTSTANDING):
        shim.ask("update", resources="r")
    manager.until(lambda: len(children(shim.pid)) == MAX_OUTSTANDING + 1, "they are under way")
    manager.vanish()
    manager.come_back()
    manager.until(lambda: manager.hellos, "it says hello to the next")
    # Idents begin anew, so the last ones' ends are those of requests with the same numbers.
    manager.restart_idents()
    asked = [shim.ask("update", resources="r") for _ in range(MAX_OUTSTANDING)]
    with pytest.raises(errors.Unavailable, match="update task: 16 requests"):
        shim.call("update", resources="r")
    all_ = 1 + 2 * MAX_OUTSTANDING
    manager.until(lambda: len(children(shim.pid)) == all_, "all are under way")
    pids = children(shim.pid)
    for pid in pids[1 : MAX_OUTSTANDING + 1]:
        os.kill(pid, signal.SIGKILL)
    manager.until(lambda: len(children(shim.pid)) == MAX_OUTSTANDING + 1, "the first have ended")
    with pytest.raises(errors.Unavailable, match="update task: 16 requests"):
        shim.call("update", resources="r")
    assert not set(asked) & manager.answers.keys()
    for pid in pids[MAX_OUTSTANDING + 1 :]:
        os.kill(pid, signal.SIGKILL)
    manager.until(lambda: set(asked) <= manager.answers.keys(), "the others are answered")


def test_a_shim_that_gets_no_socket_asks_again_until_it_does(
    manager: FakeManager, shim: Shim
) -> None:
    shim.call("start")
    shim.event("start")
    before = resource.prlimit(shim.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(shim.pid, resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        manager.vanish()
        await_that(lambda: "socket" not in descriptors(shim.pid), 20, "it sees its manager's end")
        manager.come_back()
        tried = switches(shim.pid)
        await_that(lambda: switches(shim.pid) >= tried + 5, 20, "it tries again")
        assert not manager.pump(0)
    finally:
        resource.prlimit(shim.pid, resource.RLIMIT_NOFILE, before)
    manager.until(lambda: manager.hellos, "it says hello")
    assert manager.reports() == ""


def test_answers_go_to_who_asked_and_not_to_the_next_manager(
    manager: FakeManager, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    shim = manager.run("c", runtimes.fake(tmp_path / "runtime", start=f"cat {gate}"))
    ident = shim.ask("start")
    with gate.open("w"):  # the runtime has opened it: the request is under way
        manager.vanish()
        manager.come_back()
        manager.until(lambda: manager.hellos, "it says hello to the next")
    shim.event("start")
    with pytest.raises(errors.Unimplemented):
        shim.call("no_such_method")
    assert ident not in manager.answers


def test_an_older_generation_is_not_listened_to(manager: FakeManager, shim: Shim) -> None:
    manager.generation = 0
    manager.greet(shim.incarnation)
    manager.generation = 1
    with pytest.raises(errors.Unimplemented):
        shim.call("no_such_method")
    assert len(manager.hellos) == 1


def test_a_manager_without_a_common_version_is_told_so(manager: FakeManager, shim: Shim) -> None:
    shim.event("create")
    welcome = codec.Welcome(2, [77], [])
    manager.send(shim.incarnation, codec.encode(welcome))
    manager.until(lambda: len(manager.hellos) == 2, "it says hello")
    assert manager.hellos[1][1].version == 0
    # It asks nothing of such a manager, and does nothing for it.
    manager.generation = 2
    ident = shim.ask("kill", **_kill_body())
    assert not manager.pump(300)
    assert ident not in manager.answers
    manager.generation = 3
    manager.greet(shim.incarnation)
    manager.until(lambda: len(manager.hellos) == 3, "it says hello")
    shim.kill()


_BODIES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
_METHODS = st.sampled_from(
    ["start", "kill", "exec", "attach", "resize", "close_stdin", "pause", "resume", "", "\0", "x"]
)
_FIELDS = st.sampled_from(
    [
        "exec_id",
        "signal",
        "all",
        "process",
        "terminal",
        "console",
        "stdin",
        "stdout",
        "stderr",
        "rows",
        "cols",
    ]
)


@settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    frames=st.one_of(
        st.lists(st.binary(max_size=200), min_size=1, max_size=4),
        st.tuples(st.sampled_from([b"\0", b"\1", b"\2"]), st.binary(max_size=200)).map(list),
    )
)
def test_f73_malformed_frames_are_dropped(
    manager: FakeManager, shim: Shim, frames: list[bytes]
) -> None:
    manager.send(shim.incarnation, frames)
    with pytest.raises(errors.Unimplemented):
        shim.call("no_such_method")


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    method=_METHODS,
    body=st.dictionaries(_FIELDS, st.sampled_from(["", "x", "../..", "/proc/self/fd/0"]) | _BODIES),
)
def test_f73_requests_with_any_body_are_answered_and_hurt_nobody(
    manager: FakeManager, shim: Shim, method: str, body: dict[str, object]
) -> None:
    body = {name: value for name, value in body.items() if not (name == "all" and value)}
    if method == "kill":
        body["signal"] = 0
    try:
        ident = shim.ask(method, **body)
    except (OverflowError, ValueError):
        return  # what msgpack cannot carry
    try:
        manager.answer(ident)
    except errors.LighterError:
        pass
    assert not shim.ended()


def test_f73_truncated_and_flooding_messages(manager: FakeManager, shim: Shim) -> None:
    whole = codec.encode(
        codec.Request(manager.generation, 1, "task", "no_such_method", None, {}, _kill_body())
    )
    choice = random.Random(1)
    with pytest.raises(errors.Unimplemented):
        shim.call("no_such_method")

    def flood(messages: int) -> None:
        for _ in range(messages):
            cut = bytearray(whole[1][: choice.randrange(len(whole[1]))])
            if cut:
                cut[choice.randrange(len(cut))] = choice.randrange(256)
            while True:
                try:
                    manager.send(shim.incarnation, [whole[0], bytes(cut)])
                    break
                except Exception:
                    manager.pump(20)
        with pytest.raises(errors.Unimplemented):
            shim.call("no_such_method")

    flood(500)  # what it touches for the first time is no growth
    before = private_kib(shim.pid)
    flood(2000)
    os.kill(shim.event("create")["pid"], 0)
    assert private_kib(shim.pid) - before < 256


def private_kib(pid: int) -> int:
    """What a process has of its own, in memory."""
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(row.split()[1]) for row in rows if row.startswith("Private_"))


def test_f73_answers_nobody_waits_for_are_counted_and_change_nothing(
    manager: FakeManager, loop: Loop
) -> None:
    """A link in this process, so that its count can be seen."""
    asked: list[codec.Request] = []
    link = Link(loop, str(manager.base / "shims.sock"), "0123456789abcdef", dict, asked.append)

    def turns_until(condition: Callable[[], object], what: str) -> None:
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end, what
            loop.call_later(0.01, loop.stop)
            loop.run()
            manager.pump(0)

    turns_until(lambda: manager.hellos, "it says hello")
    here, gone = manager.generation, manager.generation - 1
    useless: list[codec.Message] = [
        codec.Response(here, 1, {}),  # of nothing that it asked for
        codec.Error(here, 1, "internal", "", {}),
        codec.Request(gone, 2, "task", "kill", None, {}, {}),
        codec.Ack(gone, 1 << 40),
        codec.Hello(here, 1, [], {}),
        codec.Welcome(gone, [1], []),
    ]
    link.publish("/tasks/exit", {})
    for message in useless * 3:
        manager.send("0123456789abcdef", codec.encode(message))
    manager.send("0123456789abcdef", [b"\1", b"\xc1"])
    turns_until(lambda: link.dropped == 3 * len(useless) + 1, "each is counted")
    assert (asked, len(manager.hellos)) == ([], 1)
    link.close()


def test_a_connection_that_cannot_be_watched_is_made_again(manager: FakeManager) -> None:
    failed: list[BaseException] = []
    loop = Loop(failed.append)
    epoll = Scarce(loop)
    epoll.error = errno.EINVAL
    link = Link(loop, str(manager.base / "shims.sock"), "0123456789abcdef", dict, lambda _: None)
    end = time.monotonic() + 20
    while len(failed) < 2:
        assert time.monotonic() < end
        loop.call_later(0.01, loop.stop)
        loop.run()
    assert link._dealer.fileno() == -1
    epoll.error = 0

    def turn() -> bool:
        loop.call_later(0.01, loop.stop)
        loop.run()
        return bool(manager.hellos)

    manager.until(turn, "it says hello")
    link.close()
    loop.close()


def test_a_manager_that_ends_each_connection_is_not_asked_without_a_pause(
    manager: FakeManager, loop: Loop
) -> None:
    manager.vanish()
    path = manager.base / "other.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(64)
        link = Link(loop, str(path), "0123456789abcdef", dict, lambda _: None)
        came: list[float] = []

        def on_ready(_events: int) -> None:
            listener.accept()[0].close()
            came.append(time.monotonic())

        loop.watch(listener.fileno(), READ, on_ready)
        loop.call_later(1.0, loop.stop)
        loop.run()
        loop.unwatch(listener.fileno())
        link.close()
    # 20, 40, 80 and 160 ms, then 200 each time.
    assert 2 <= len(came) <= 10, came


def test_a_shim_connects_at_once_when_it_is_told_that_a_manager_listens(
    manager: FakeManager, shim: Shim
) -> None:
    """By itself it would come again after 0.2 s each time."""
    shim.event("create")
    manager.vanish()
    path = manager.base / "shims.sock"
    path.unlink(missing_ok=True)
    times = 100
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(0.01)
        began = time.monotonic()
        for _ in range(times):
            came = False
            while not came:
                os.kill(shim.pid, shim_api.LISTENING)
                with contextlib.suppress(TimeoutError):
                    listener.accept()[0].close()
                    came = True
        took = time.monotonic() - began
    assert took < times * 0.2 / 2
    # It has heard no welcome, and goes on as ever when one comes.
    path.unlink()
    manager.come_back()
    manager.until(lambda: manager.hellos, "it says hello")
    shim.call("start")
    shim.event("start")


def test_an_idle_shim_sleeps(manager: FakeManager, shim: Shim) -> None:
    shim.call("start")
    shim.event("start")
    while manager.pump(200):
        pass
    before = switches(shim.pid)
    assert not manager.pump(2000)
    assert switches(shim.pid) - before == 0
