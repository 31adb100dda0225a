"""The clients' ROUTER: calls, streams, refusals, and peers that do not keep to the protocol."""

import errno
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgpack
import pytest
import zmq
from hypothesis import HealthCheck, given, settings

from lighter.daemon.limits import LEAST, Places, Share
from lighter.daemon.rpc import server as server_module
from lighter.daemon.rpc.server import CREDIT_BYTES, KEPT, MAX_CALLS, ClientServer
from lighter.daemon.rpc.system_handlers import system_methods
from lighter.daemon.wire import sockets
from lighter.proto import codec, errors
from lighter.proto.dealer import Dealer
from tests import zeromq
from tests.client import Client
from tests.harness import await_that
from tests.processes import own_descriptors
from tests.unit.daemon import hostile
from tests.unit.daemon.intruder import Intruder
from tests.unit.daemon.serving import GENERATION, Service, Serving, client_server

GROUP = 54321  # nobody's on any host


class Setting:
    """One server and what serves there."""

    def __init__(self, serving: Serving, server: ClientServer, service: Service) -> None:
        self.serving, self.server, self.service = serving, server, service

    def client(self) -> Client:
        return Client(self.serving.address)

    @contextmanager
    def raw(self) -> Iterator["zmq.Socket[bytes]"]:
        """A DEALER that has been welcomed and has said nothing."""
        context = sockets.context()
        socket = zeromq.connect_dealer(context, self.serving.address, sockets.CLIENT_HWM)
        try:
            assert socket.poll(20_000)
            assert isinstance(codec.decode(socket.recv_multipart()), codec.Welcome)
            yield socket
        finally:
            context.destroy(0)


@pytest.fixture(scope="module")
def long_lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    service = Service()
    with client_server(tmp_path_factory.mktemp("s"), service) as (serving, server):
        yield Setting(serving, server, service)


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Setting]:
    service = Service()
    with client_server(tmp_path, service) as (serving, server):
        yield Setting(serving, server, service)


def intruder(serving: Serving, method: str) -> Intruder:
    """A process of the group that is served, which calls it."""
    return Intruder(serving.address, {}, [request(1, method)], gid=GROUP)


def request(
    ident: int, method: str, deadline_ns: int | None = None, **body: object
) -> codec.Request:
    return codec.Request(GENERATION, ident, "test", method, deadline_ns, {}, dict(body))


def answer(socket: "zmq.Socket[bytes]", timeout_s: float = 5) -> codec.Message | None:
    if not socket.poll(int(timeout_s * 1000)):
        return None
    return codec.decode(socket.recv_multipart())


def test_a_call_is_answered_and_the_caller_is_who_the_kernel_says(at: Setting) -> None:
    with at.client() as client:
        assert client.call("test", "echo", a=[1, {"b": None}]) == {"a": [1, {"b": None}]}
    caller = at.service.callers[0]
    assert (caller.namespace, caller.pid, caller.uid) == ("default", os.getpid(), os.getuid())


def test_a_stream_ends_with_its_result(at: Setting) -> None:
    with at.client() as client:
        stream = client.stream("test", "count", to=1000)
        assert [item["n"] for item in stream] == list(range(1, 1001))
        assert stream.result == {"total": 1000}


def test_errors_travel_by_code_and_a_bug_is_internal(at: Setting) -> None:
    with at.client() as client:
        with pytest.raises(errors.NotFound, match=r"find \\udcff: there is none"):
            client.call("test", "fail")
        with pytest.raises(errors.Internal, match=r"call test.fail: RuntimeError: a bug"):
            client.call("test", "fail", broken=True)
        with pytest.raises(errors.Unimplemented, match=r"call test\.nope: there is no such method"):
            client.call("test", "nope")
        assert client.call("test", "echo") == {}


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, errors.ResourceExhausted),
        (errno.EMFILE, errors.ResourceExhausted),
        (errno.EACCES, errors.PermissionDenied),
        (errno.EIO, errors.DataLoss),
        (errno.ENOENT, errors.Internal),  # some file's absence, not that of what was asked for
    ],
)
def test_f49_what_the_host_lacks_is_told_as_that_with_the_path(
    at: Setting, number: int, expected: type[errors.LighterError]
) -> None:
    with at.client() as client, pytest.raises(expected, match=r"call test\.fail: .*/a/file"):
        client.call("test", "fail", errno=number)


def test_an_error_that_quotes_megabytes_still_arrives(at: Setting) -> None:
    with at.client() as client:
        with pytest.raises(errors.NotFound) as caught:
            client.call("test", "fail", length=20 << 20)
        assert len(caught.value.message) <= server_module.MAX_SHOWN + 10
        with pytest.raises(errors.Unimplemented) as caught_name:
            client.call("x" * (1 << 20), "y" * (1 << 20))
        assert len(caught_name.value.message) < 300


def test_an_answer_over_the_cap_is_an_error_not_a_lost_connection(at: Setting) -> None:
    with at.client() as client:
        with pytest.raises(errors.ResourceExhausted, match="at most 16777216 fit"):
            client.call("test", "big", size=codec.MAX_MESSAGE_BYTES)
        assert len(client.call("test", "big", size=15 << 20)["data"]) == 15 << 20


def test_a_call_whose_time_is_over_is_not_executed(at: Setting) -> None:
    with at.client() as client:
        client.send(request(99, "echo", deadline_ns=time.monotonic_ns() - 1))
        message, _ = client.receive(time.monotonic() + 20, "answer")
        assert isinstance(message, codec.Error) and message.code == "deadline-exceeded"
    assert at.service.executed == []


def test_a_deadline_ends_a_call(at: Setting) -> None:
    with at.client() as client:
        client.send(request(1, "hang", deadline_ns=time.monotonic_ns() + 50_000_000))
        message, _ = client.receive(time.monotonic() + 20, "answer")
        assert isinstance(message, codec.Error) and message.code == "deadline-exceeded"
    assert at.service.cancelled == ["hang"]


def test_a_dead_disk_is_not_the_end_of_the_callers_time(at: Setting) -> None:
    with at.client() as client:
        for ident, deadline_ns in ((1, None), (2, time.monotonic_ns() + 3600 * 10**9)):
            asked = request(ident, "fail", deadline_ns=deadline_ns, errno=errno.ETIMEDOUT)
            client.send(asked)
            message, _ = client.receive(time.monotonic() + 20, "answer")
            assert isinstance(message, codec.Error) and message.code == "internal", message
            assert "/a/file" in message.message


def test_a_call_can_be_cancelled(at: Setting) -> None:
    with at.client() as client:
        client.send(request(1, "hang"))
        client.send(codec.Cancel(GENERATION, 1))
        client.send(codec.Cancel(GENERATION, 2))  # of nothing
        message, _ = client.receive(time.monotonic() + 20, "answer")
        assert message == codec.Error(
            GENERATION, 1, "canceled", "call test.hang: canceled by its caller", {}
        )


def test_an_ident_in_use_is_not_used_twice(at: Setting) -> None:
    with at.client() as client:
        for _ in range(3):
            client.send(request(1, "hang"))
        client.send(request(2, "echo"))
        message, _ = client.receive(time.monotonic() + 20, "answer")
        assert isinstance(message, codec.Response) and message.ident == 2
    assert at.service.executed == ["hang", "echo"]


def test_a_client_has_a_bounded_number_of_calls(at: Setting) -> None:
    with at.client() as client, at.client() as other:
        for ident in range(MAX_CALLS + 1):
            while True:
                try:
                    client.send(request(ident, "hang"))
                    break
                except zmq.Again:
                    client.socket.poll(10, zmq.POLLOUT)
        message, _ = client.receive(time.monotonic() + 20, "answer")
        assert isinstance(message, codec.Error)
        assert (message.ident, message.code) == (MAX_CALLS, "resource-exhausted")
        assert other.call("test", "echo") == {}


def test_a_peer_that_said_no_hello_is_told_so(at: Setting) -> None:
    with at.raw() as socket:
        socket.send_multipart(codec.encode(request(5, "echo")))
        message = answer(socket)
        assert isinstance(message, codec.Error)
        assert (message.ident, message.code) == (5, "failed-precondition")
    assert at.service.executed == []


def test_one_client_too_many_is_told_so(at: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at.server, "_most_clients", lambda: 1)
    with at.client() as first:
        assert first.call("test", "echo") == {}
        with at.client() as second:
            with pytest.raises(errors.ResourceExhausted, match="1 clients are connected"):
                second.call("test", "echo")
        assert first.call("test", "echo") == {}


def test_f58_a_client_for_which_there_is_no_descriptor_is_told_so(
    at: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with at.client() as first:
        assert first.call("test", "echo") == {}
        with monkeypatch.context() as patch:
            patch.setattr(server_module.os, "pidfd_open", none_left)
            with at.client() as second:
                with pytest.raises(errors.ResourceExhausted, match="connect: Too many open files"):
                    second.call("test", "echo")
        assert first.call("test", "echo") == {}


def test_f58_streams_of_all_clients_together_are_bounded(at: Setting) -> None:
    at.server._streams = Places(Share(1), limit=lambda: LEAST)
    with at.client() as one, at.client() as other:
        for ident in range(LEAST):
            one.send(request(ident, "count", pad=1000))
        await_that(lambda: len(at.service.executed) == LEAST, 20, "they run")
        with pytest.raises(errors.ResourceExhausted, match=f"{LEAST} are under way already"):
            list(other.stream("test", "count", to=1))
        assert other.call("test", "echo") == {}
        one.send(codec.Cancel(GENERATION, 0))
        await_that(lambda: at.service.cancelled, 20, "one has ended")
        assert len(list(other.stream("test", "count", to=1))) == 1


def test_f58_the_stop_of_all_containers_waits_for_no_streams(at: Setting) -> None:
    at.server._streams = Places(Share(1), limit=lambda: LEAST)
    stop = system_methods(*[cast("Any", None)] * 5)["system.stop_containers"]
    assert stop.stream is not None
    stopping = replace(stop, stream=at.service.count)
    at.serving.do(lambda: at.server.complete({"system.stop_containers": stopping}))
    with at.client() as one, at.client() as other:
        for ident in range(LEAST):
            one.send(request(ident, "count", pad=1000))
        await_that(lambda: len(at.service.executed) == LEAST, 20, "they run")
        assert len(list(other.stream("system", "stop_containers", to=3))) == 3


def test_f58_who_is_no_client_any_more_has_no_connection(at: Setting) -> None:
    """Nobody counts it: so many of them would use up the descriptors."""
    with at.raw() as socket:
        socket.send_multipart(codec.encode(codec.Hello(GENERATION, 1, [], {})))
        socket.send_multipart(codec.encode(request(1, "echo")))
        answer(socket)
        (routing_id,) = at.server._clients
        at.serving.do(lambda: at.server._drop_client(routing_id))
        assert isinstance(answer(socket), codec.Welcome), "it was cut off, and has come again"


def test_f58_who_takes_its_hello_back_is_counted_as_silent(at: Setting) -> None:
    with at.raw() as socket:
        for version, silent, clients in ((1, 0, 1), (0, 1, 0), (1, 0, 1)):
            socket.send_multipart(codec.encode(codec.Hello(GENERATION, version, [], {})))
            socket.send_multipart(codec.encode(request(version, "echo")))
            assert answer(socket)
            assert (at.server.silent_count, at.server.client_count) == (silent, clients)


def test_f59_a_request_that_memory_is_too_small_for_is_refused(
    at: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = codec.decode

    def decode(frames: list[bytes]) -> codec.Message:
        if len(frames[1]) > 1000:
            raise MemoryError
        return real(frames)

    with at.client() as client:
        assert client.call("test", "echo") == {}
        with monkeypatch.context() as patch:
            patch.setattr(server_module.codec, "decode", decode)
            with pytest.raises(errors.ResourceExhausted, match="there is no memory for it"):
                client.call("test", "echo", n="x" * 2000)
            client.send(
                codec.Request(GENERATION - 1, 9, "test", "echo", None, {}, {"n": "x" * 999})
            )
        assert client.call("test", "echo", n=2) == {"n": 2}
        with pytest.raises(errors.ResourceExhausted, match=r"call test\.fail: there is no memory"):
            client.call("test", "fail", memory=True)


def test_a_process_that_connects_often_uses_up_no_places(
    at: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(at.server, "_most_clients", lambda: 5)
    for _ in range(50):
        with at.client() as client:
            assert client.call("test", "echo") == {}


CLOSING = """
import select, sys
from lighter.proto import codec
from lighter.proto.dealer import Dealer
dealers = [Dealer(sys.argv[1], b"", 65536) for _ in range(int(sys.argv[2]))]
for dealer in dealers:
    assert dealer.connect()
    heard = []
    while len(heard) < 2:
        assert select.select([dealer], [], [], 20)[0]
        for message in map(codec.decode, dealer.receive()):
            heard.append(message)
            if isinstance(message, codec.Welcome):
                dealer.send(codec.encode(codec.Hello(message.generation, 1, [], {})))
                for ident, method in ((1, "hang"), (2, "echo")):
                    call = (message.generation, ident, "test", method, None, {}, {})
                    dealer.send(codec.encode(codec.Request(*call)))
for dealer in dealers:
    dealer.close()
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def closing(at: Setting, count: int) -> Iterator[None]:
    """A process that lives on, and had so many clients, each of which had a call that hangs."""
    argv = [sys.executable, "-I", "-c", CLOSING, at.serving.address, str(count)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"\n"
        yield
        assert process.poll() is None
        process.communicate()


def test_f58_what_a_process_that_lives_has_closed_takes_no_place(
    at: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "LOOK_S", 600.0)  # nobody looks before there is need
    monkeypatch.setattr(at.server, "_most_clients", lambda: 5)
    with closing(at, 5):
        with at.client() as client:
            assert client.call("test", "echo") == {}
        assert at.server.client_count <= 1


def test_f74_the_calls_of_a_connection_that_was_closed_end_with_it(at: Setting) -> None:
    with closing(at, 2):
        await_that(lambda: at.service.cancelled == ["hang"] * 2, 30, "both calls end")
        assert at.server.client_count == 0


def test_f73_what_belongs_to_another_generation_is_dropped(at: Setting) -> None:
    with at.client() as client:
        client.send(codec.Request(GENERATION - 1, 1, "test", "echo", None, {}, {}))
        assert client.call("test", "echo", n=2) == {"n": 2}
    assert at.service.executed == ["echo"]


def test_a_hello_that_lies_about_its_pid_changes_nothing(at: Setting) -> None:
    with at.raw() as socket:
        lie = codec.Hello(GENERATION, 1, [], {"kind": "client", "pid": 1, "uid": 0})
        socket.send_multipart(codec.encode(lie))
        socket.send_multipart(codec.encode(request(1, "echo")))
        assert isinstance(answer(socket), codec.Response)
    assert at.service.callers[0].pid == os.getpid()


@pytest.mark.root
def test_f58_some_places_are_kept_for_root() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="lighter-", dir="/tmp") as directory,
        client_server(Path(directory), Service(), GROUP, most_clients=lambda: KEPT) as served,
        ExitStack() as clients,
    ):
        os.chmod(directory, 0o755)
        os.chmod(served[0].address, 0o777)
        for number in range(1, KEPT):
            client = clients.enter_context(Client(served[0].address))
            assert client.call("test", "echo") == {}
            if number == KEPT - 2:
                with intruder(served[0], "echo") as peer:
                    assert peer.answer() == "done"
                await_that(lambda: served[1].client_count == KEPT - 2, 20, "it has gone")
        with intruder(served[0], "echo") as peer:
            assert peer.answer() == "resource-exhausted"
        root = clients.enter_context(Client(served[0].address))
        assert root.call("test", "echo") == {}


@pytest.mark.root
@pytest.mark.parametrize(
    ("served", "ids"),
    [
        (False, {"uid": 65534, "gid": 65534}),
        (False, {"uid": 65534, "gid": 65534, "groups": [GROUP - 1, GROUP + 1]}),
        (True, {"uid": 65534, "gid": 65534, "groups": [1, GROUP, 2]}),
        (True, {"uid": 65534, "gid": GROUP}),
        (True, {"uid": 0, "gid": 65534}),
    ],
)
def test_f76_the_group_is_served_and_nobody_else_whatever_the_mode(
    served: bool, ids: dict[str, Any]
) -> None:
    service = Service()
    with tempfile.TemporaryDirectory(prefix="lighter-", dir="/tmp") as directory:
        os.chmod(directory, 0o755)
        with client_server(Path(directory), service, gid=GROUP) as (serving, _server):
            os.chmod(serving.address, 0o777)
            with Intruder(serving.address, {}, [request(1, "echo")], **ids) as peer:
                assert peer.answer() == ("done" if served else "permission-denied")
    assert service.executed == ["echo"] * served


def test_a_routing_id_is_no_way_into_the_place_of_another_client(at: Setting) -> None:
    with at.client() as client:
        assert client.call("test", "echo", n=1) == {"n": 1}
        (routing_id,) = at.server._clients
        thief = Dealer(at.serving.address, routing_id, 4096)
        assert thief.connect()
        # While it is taken.
        assert not select.select([thief], [], [], 0.3)[0] or not list(thief.receive())
        assert client.call("test", "echo", n=2) == {"n": 2}
        thief.close()
    # After it was given up, by a process that lives.
    calls = [request(1, "echo", n=3)]
    with Intruder(at.serving.address, None, calls, routing_id, uid=os.getuid()) as peer:
        assert peer.answer() == "failed-precondition"
    assert at.service.executed == ["echo", "echo"]


def test_a_malformed_request_with_a_readable_head_is_answered(at: Setting) -> None:
    with at.client() as client:
        kinds = [2, GENERATION, 33, "test", "echo", "soon", {}, {}]
        client.socket.send_multipart([b"\1", msgpack.packb(kinds)])
        message, _ = client.receive(time.monotonic() + 20, "answer")
        assert isinstance(message, codec.Error)
        assert (message.ident, message.code) == (33, "invalid-argument")


@pytest.mark.parametrize("name", hostile.BODIES)
def test_a_hostile_body_is_dropped_and_counted(long_lived: Setting, name: str) -> None:
    with long_lived.client() as client:
        assert client.call("test", "echo") == {}
        dropped = long_lived.server.dropped
        client.socket.send_multipart([b"\1", hostile.BODIES[name]])
        assert client.call("test", "echo") == {}
        assert long_lived.server.dropped == dropped + 1


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(frames=hostile.messages(GENERATION))
def test_any_frames_leave_the_server_serving(long_lived: Setting, frames: list[bytes]) -> None:
    with long_lived.raw() as socket:
        hello = codec.Hello(GENERATION, 1, [], {})
        socket.send_multipart(codec.encode(hello))
        socket.send_multipart(frames)
        # In order, so this answer tells that the frames were read.
        socket.send_multipart(codec.encode(request(1 << 40, "echo")))
        while True:
            message = answer(socket)
            assert message is not None, frames
            if getattr(message, "ident", None) == 1 << 40:
                break
    assert not [name for name in long_lived.service.executed if name not in METHODS]


METHODS = {"echo", "hang", "count"}


def test_a_stream_waits_for_a_reader_that_does_not_read(at: Setting) -> None:
    with at.client() as silent, at.client() as other:
        silent.send(request(1, "count", pad=1000))
        assert other.call("test", "echo") == {}
        got = 0
        while silent.socket.poll(20_000 if got < CREDIT_BYTES else 300):
            got += sum(map(len, silent.socket.recv_multipart()))
            assert other.call("test", "echo") == {}
        # All the credit is used, and no more than one item beyond it.
        assert CREDIT_BYTES <= got < CREDIT_BYTES + 2000
        silent.send(codec.Credit(GENERATION, 1, 10_000))
        assert silent.socket.poll(20_000)


def test_a_client_that_takes_no_answers_is_dropped_and_others_are_served(at: Setting) -> None:
    with at.client() as greedy, at.client() as other:
        for ident in range(40):
            assert greedy.socket.poll(5000, zmq.POLLOUT)
            greedy.send(request(ident, "big", size=4 << 20))
            await_that(lambda: other.call("test", "echo") == {}, 30, "the other is answered")
            if at.server.client_count < 2:
                break
        await_that(lambda: at.server.client_count == 1, 30, "the client is dropped")
        assert other.call("test", "echo") == {}


CLIENT = """
import os, select, sys
from lighter.proto import codec
from lighter.proto.dealer import Dealer
dealer = Dealer(sys.argv[1], b"", 65536)
assert dealer.connect()
def messages():
    while True:
        assert select.select([dealer], [], [], 20)[0]
        yield from map(codec.decode, dealer.receive())
came = messages()
welcome = next(came)
assert dealer.send(codec.encode(codec.Hello(welcome.generation, 1, [], {})))
for ident, method in ((1, "hang"), (2, "count")):
    request = codec.Request(welcome.generation, ident, "test", method, None, {}, {})
    assert dealer.send(codec.encode(request))
next(came)
print(flush=True)
sys.stdin.read()
os.kill(os.getpid(), 9)
"""


def test_f74_the_calls_of_a_client_that_died_end_with_it(at: Setting) -> None:
    before = own_descriptors()
    dying = subprocess.Popen(
        [sys.executable, "-I", "-c", CLIENT, at.serving.address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with dying:
        assert dying.stdout is not None and dying.stdin is not None
        assert dying.stdout.readline() == b"\n"
        await_that(lambda: at.service.executed == ["hang", "count"], 30, "both calls run")
        dying.stdin.close()
    await_that(lambda: sorted(at.service.cancelled) == ["count", "hang"], 30, "both calls end")
    assert at.server.client_count == 0
    await_that(lambda: own_descriptors() <= before, 30, "nothing stays open")


def test_f76_a_socket_that_was_deleted_is_put_back_and_connections_stay(at: Setting) -> None:
    path = Path(at.serving.address)
    with at.client() as client:
        path.unlink()
        at.serving.do(at.server.listen_again)
        assert path.is_socket() and path.stat().st_mode & 0o777 == 0o600
        assert client.call("test", "echo") == {}
        with at.client() as other:
            assert other.call("test", "echo") == {}
        inode = path.stat().st_ino
        at.serving.do(at.server.listen_again)
        assert path.stat().st_ino == inode


def test_a_file_in_the_sockets_place_is_kept(at: Setting) -> None:
    path = Path(at.serving.address)
    path.unlink()
    path.write_text("precious")
    at.serving.do(at.server.listen_again)
    assert path.read_text() == "precious"
    path.unlink()


def test_many_small_items_are_not_paced_by_a_timer(at: Setting) -> None:
    started = time.monotonic()
    with at.client() as client:
        stream = client.stream("test", "count", to=20_000)
        assert sum(1 for _ in stream) == 20_000
    # By the retry timer alone it would be 16 messages in 20 ms: 25 s.
    assert time.monotonic() - started < 12


def test_who_is_about_to_ask_or_waits_for_an_answer_is_known(tmp_path: Path) -> None:
    """Not who waits for a method that is not there yet."""
    service = Service()
    with client_server(tmp_path, service, more_to_come=True) as (serving, server):
        at = Setting(serving, server, service)

        def is_asked() -> bool:
            return bool(serving.do(lambda: server.is_asked))

        assert not is_asked()
        with at.raw() as silent:
            await_that(is_asked, 20, "one that has said no hello is seen")
            silent.close(0)
            await_that(lambda: not is_asked(), 20, "it has gone")
        with at.client() as client:
            client.send(request(11, "later"))
            assert client.call("test", "echo") == {}
            await_that(lambda: not is_asked(), 20, "what can be answered is answered")
            client.send(request(12, "hang"))
            await_that(is_asked, 20, "an answer is waited for")


def test_a_call_of_a_method_that_is_still_loaded_waits_for_it(tmp_path: Path) -> None:
    service = Service()
    with client_server(tmp_path, service, more_to_come=True) as (serving, server):
        at = Setting(serving, server, service)
        with at.client() as client:
            client.send(request(11, "later"))
            client.send(request(12, "never"))
            client.send(request(13, "later", deadline_ns=time.monotonic_ns() + 50_000_000))
            message, _ = client.receive(time.monotonic() + 20, "answer")
            assert isinstance(message, codec.Error)
            assert (message.ident, message.code) == (13, "deadline-exceeded")
            assert client.call("test", "echo") == {}  # the first ones are answered
            methods = {"test.later": service.methods()["test.echo"]}
            serving.do(lambda: server.complete(methods))
            answers = {}
            for _ in range(2):
                message, _ = client.receive(time.monotonic() + 20, "answer")
                assert isinstance(message, codec.Response | codec.Error)
                answers[message.ident] = message
            assert isinstance(answers[11], codec.Response)
            assert isinstance(answers[12], codec.Error) and answers[12].code == "unimplemented"
