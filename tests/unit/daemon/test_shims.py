"""The shims' ROUTER: who may say hello, and peers that do not keep to the protocol."""

import asyncio
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
from hypothesis import HealthCheck, given, settings

from lighter.daemon.tasks.shims import Peer, ShimRouter
from lighter.daemon.wire import sockets
from lighter.proto import codec
from lighter.proto.calls import MAX_OUTSTANDING
from lighter.proto.errors import DeadlineExceeded, Unavailable
from tests import zeromq
from tests.harness import await_that
from tests.unit.daemon import hostile
from tests.unit.daemon.intruder import Intruder
from tests.unit.daemon.serving import GENERATION, Serving, shim_router

ME = "00112233aabbccdd"


class Setting:
    def __init__(self) -> None:
        self.hellos: list[dict[str, Any]] = []
        self.events: list[codec.Event] = []
        self.commit = True
        self.failing = 0  # the event that cannot be applied, once
        self.router = ShimRouter(GENERATION, self._on_hello, self._on_event)
        self.serving: Serving

    def _on_hello(self, peer: Peer) -> None:
        self.hellos.append(peer.identity)

    def _on_event(self, _peer: Peer, event: codec.Event) -> bool:
        self.events.append(event)
        if event.sequence == self.failing:
            self.failing = 0
            raise Unavailable("record event: the disk is full")
        return self.commit

    @contextmanager
    def shim(self, chosen: int = 1, **identity: Any) -> Iterator["zmq.Socket[bytes]"]:
        """A welcomed DEALER that has said hello with `identity` over the true one."""
        context = sockets.context()
        socket = zeromq.connect_dealer(context, self.serving.address, sockets.SHIM_HWM, ME.encode())
        try:
            assert socket.poll(20_000)
            assert isinstance(codec.decode(socket.recv_multipart()), codec.Welcome)
            true = {"incarnation": ME, "pid": os.getpid(), "version": "1"}
            hello = codec.Hello(GENERATION, chosen, [], {**true, **identity})
            socket.send_multipart(codec.encode(hello))
            yield socket
        finally:
            context.destroy(0)


@pytest.fixture(scope="module")
def long_lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    setting = Setting()
    with shim_router(tmp_path_factory.mktemp("s"), setting.router) as setting.serving:
        yield setting


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Setting]:
    setting = Setting()
    with shim_router(tmp_path, setting.router) as setting.serving:
        yield setting


def event(sequence: int) -> codec.Event:
    return codec.Event(GENERATION, sequence, "/tasks/exit", 1, {})


def test_a_hello_is_taken_and_an_event_acknowledged(at: Setting) -> None:
    with at.shim() as socket:
        socket.send_multipart(codec.encode(event(1)))
        assert socket.poll(20_000)
        assert codec.decode(socket.recv_multipart()) == codec.Ack(GENERATION, 1)
    assert at.hellos[0]["incarnation"] == ME


def test_an_event_that_was_not_committed_is_not_acknowledged(at: Setting) -> None:
    at.commit = False
    with at.shim() as socket:
        socket.send_multipart(codec.encode(event(1)))
        await_that(lambda: at.events, 30, "the event arrives")
        assert not socket.poll(100)


def test_f10_nothing_is_applied_before_what_failed_is_told_again(at: Setting) -> None:
    """An acknowledgement covers all numbers before it."""
    at.failing = 1
    with at.shim() as socket:
        for number in (1, 2):
            socket.send_multipart(codec.encode(event(number)))
        assert socket.poll(20_000)
        assert isinstance(codec.decode(socket.recv_multipart()), codec.Welcome)
        identity = {"incarnation": ME, "pid": os.getpid(), "version": "1"}
        socket.send_multipart(codec.encode(codec.Hello(GENERATION, 1, [], identity)))
        for number in (1, 2):
            socket.send_multipart(codec.encode(event(number)))
        acknowledged = 0
        while acknowledged < 2:
            assert socket.poll(20_000)
            answer = codec.decode(socket.recv_multipart())
            assert isinstance(answer, codec.Ack)
            acknowledged = answer.sequence
    assert [seen.sequence for seen in at.events] == [1, 1, 2]


@pytest.mark.parametrize("lie", [{"incarnation": "f" * 16}, {"pid": 1}, {"pid": None}])
def test_a_hello_of_somebody_else_is_dropped_with_all_that_follows(
    at: Setting, lie: dict[str, Any]
) -> None:
    with at.shim(**lie) as socket:
        socket.send_multipart(codec.encode(event(1)))
        await_that(lambda: at.router.dropped, 30, "the hello is dropped")
        assert not socket.poll(100)
    assert (at.hellos, at.events, at.router.peers) == ([], [], {})


@pytest.fixture
def open_to_all() -> Iterator[Setting]:
    """Somebody has changed the socket's mode, and those above it."""
    setting = Setting()
    with tempfile.TemporaryDirectory(prefix="lighter-", dir="/tmp") as directory:
        os.chmod(directory, 0o755)
        with shim_router(Path(directory), setting.router) as setting.serving:
            os.chmod(setting.serving.address, 0o777)
            yield setting


@pytest.mark.root
def test_f76_another_user_is_no_shim(open_to_all: Setting) -> None:
    at = open_to_all
    path, other = at.serving.address, ME[::-1]
    with Intruder(path, {"incarnation": ME}, [event(1)], ME.encode(), uid=0):
        await_that(lambda: at.events, 30, "one of root's is taken")
    at.hellos.clear()
    at.events.clear()
    with Intruder(path, {"incarnation": other}, [event(2)], other.encode()):
        await_that(lambda: at.router.dropped >= 2 or at.events, 30, "hello and event are dropped")
    assert (at.hellos, at.events, list(at.router.peers)) == ([], [], [ME])


def test_who_takes_a_shims_routing_id_is_not_heard_as_that_shim(at: Setting) -> None:
    path, me = at.serving.address, ME.encode()
    answer = at.serving.do(lambda: at.router.expect_created(5))
    with Intruder(path, {"incarnation": ME}, [event(1)], me, uid=os.getuid()):
        await_that(lambda: at.events, 30, "its event is taken")
        response = codec.Response(GENERATION, 5, {})
        with Intruder(path, None, [event(2), response], me, uid=os.getuid()):
            await_that(lambda: at.router.dropped >= 2 or len(at.events) > 1, 30, "both are dropped")
            assert at.router._strangers is not None
            await_that(lambda: at.router._strangers.cut_off, 30, "the shim is made to come again")
    assert [seen.sequence for seen in at.events] == [1]
    assert not answer.done()


def test_an_event_of_another_generation_is_dropped(at: Setting) -> None:
    with at.shim() as socket:
        socket.send_multipart(codec.encode(event(1)._replace(generation=GENERATION - 1)))
        socket.send_multipart(codec.encode(event(2)))
        assert socket.poll(20_000)
    assert [seen.sequence for seen in at.events] == [2]


@pytest.mark.parametrize("name", hostile.BODIES)
def test_a_hostile_body_is_dropped_and_counted(long_lived: Setting, name: str) -> None:
    with long_lived.shim() as socket:
        dropped = long_lived.router.dropped
        socket.send_multipart([b"\1", hostile.BODIES[name]])
        socket.send_multipart(codec.encode(event(5)))
        assert socket.poll(20_000)
        assert long_lived.router.dropped == dropped + 1


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(frames=hostile.messages(GENERATION))
def test_any_frames_leave_the_router_serving(long_lived: Setting, frames: list[bytes]) -> None:
    with long_lived.shim() as socket:
        socket.send_multipart(frames)
        last = 1 << 40
        socket.send_multipart(codec.encode(event(last)))
        while True:
            assert socket.poll(20_000), frames
            if codec.decode(socket.recv_multipart()) == codec.Ack(GENERATION, last):
                break


def test_f76_a_socket_that_was_deleted_is_put_back(at: Setting) -> None:
    path = Path(at.serving.address)
    path.unlink()
    at.serving.do(at.router.listen_again)
    assert path.is_socket() and path.stat().st_mode & 0o777 == 0o600
    with at.shim():
        await_that(lambda: at.hellos, 30, "a shim connects")


def test_a_version_that_was_not_offered_is_dropped(at: Setting) -> None:
    with at.shim(chosen=77) as socket:
        await_that(lambda: at.router.dropped, 30, "the hello is dropped")
        assert not socket.poll(100)
    assert (at.hellos, at.router.peers) == ([], {})


def test_no_common_version_is_a_hello_too(at: Setting) -> None:
    with at.shim(chosen=0, protocols=[77]):
        await_that(lambda: at.hellos, 30, "the hello is taken")
    assert (at.hellos[0]["protocols"], at.router.peers[ME].version) == ([77], 0)


def test_a_late_answer_and_a_second_one_reach_nobody(at: Setting) -> None:
    def ask(timeout_s: float) -> "Future[Any]":
        call = at.router.peers[ME].call("kill", {}, timeout_s)
        return asyncio.run_coroutine_threadsafe(call, at.serving.loop)

    def asked() -> int:
        while True:
            assert socket.poll(20_000)
            message = codec.decode(socket.recv_multipart())
            if isinstance(message, codec.Request):
                return message.ident

    def answer(ident: int, body: Any) -> None:
        socket.send_multipart(codec.encode(codec.Response(GENERATION, ident, body)))

    with at.shim() as socket:
        await_that(lambda: at.hellos, 30, "the hello is taken")
        late = ask(0.05)
        ident = asked()
        with pytest.raises(DeadlineExceeded):
            late.result(20)
        answer(ident, "late")
        first = ask(20)
        ident = asked()
        for body in ("first", "second", "third"):
            answer(ident, body)
        assert first.result(20) == "first"
        next_ = ask(20)
        answer(asked(), "next")
        assert next_.result(20) == "next"
        assert at.router.dropped == 3
        # As many as may be open at a time are free again.
        for _ in range(2 * MAX_OUTSTANDING):
            again = ask(20)
            answer(asked(), "again")
            assert again.result(20) == "again"


def test_events_wait_for_those_who_follow_them(at: Setting) -> None:
    """A manager that is not complete greets shims, and hears in their order what they told it."""
    at.serving.do(at.router.hold_events)
    with at.shim() as socket:
        for number in (1, 2):
            socket.send_multipart(codec.encode(event(number)))
        await_that(lambda: at.hellos, 30, "the hello is taken")
        assert not socket.poll(200)
        assert at.events == []
        at.serving.do(at.router.release_events)
        assert socket.poll(20_000)
        assert codec.decode(socket.recv_multipart()) == codec.Ack(GENERATION, 2)
        socket.send_multipart(codec.encode(event(3)))
        assert socket.poll(20_000)
    assert [seen.sequence for seen in at.events] == [1, 2, 3]


def test_what_a_shim_told_that_has_ended_since_is_left_to_its_exit_record(at: Setting) -> None:
    """Its end is settled from there; its events would be a second end of the same task."""
    at.serving.do(at.router.hold_events)
    with at.shim() as socket:
        socket.send_multipart(codec.encode(event(1)))
        await_that(lambda: at.router._held, 30, "the event is held")
        at.serving.do(lambda: at.router.forget(ME, "it ended"))
        at.serving.do(at.router.release_events)
        assert not socket.poll(200)
    assert at.events == []
