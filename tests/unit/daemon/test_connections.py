"""Connections that never say hello: bounded in time and in number, and nobody else is hurt."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import zmq

from lighter.daemon.rpc.server import ClientServer
from lighter.daemon.tasks.shims import ShimRouter
from lighter.daemon.wire import connections, sockets
from lighter.proto import codec, zmtp
from tests import zeromq
from tests.client import Client
from tests.harness import await_that
from tests.unit.daemon.serving import GENERATION, Service, Serving, client_server, shim_router

SOON_S = 1.5  # who does say hello must have done it by then
NEVER_S = 600.0
SPOKEN = {
    "nothing": b"",
    "half a greeting": zmtp.GREETING[:33],
    "a greeting": zmtp.GREETING,
    "a handshake": zmtp.opening(b""),
    "a probe": zmtp.opening(b""),
}


@contextmanager
def stranger(path: str, said: str = "nothing") -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(path)
        connection.sendall(SPOKEN[said])
        if said == "a probe":
            decoder = zmtp.Decoder()
            while not decoder.ready:
                decoder.feed(connection.recv(4096))
            connection.sendall(zmtp.PROBE)
        yield connection


def is_cut_off(connection: socket.socket) -> bool:
    """Read to the end: whatever the server still said, it has closed."""
    try:
        while connection.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


def connections_at(path: str) -> int:
    """How many of this process's descriptors are ends that a server has at this path."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=int(name)) as one:
                found += one.family == socket.AF_UNIX and one.getsockname() == path
                one.detach()
        except OSError:
            continue
    return found


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[tuple[Serving, ClientServer]]:
    with client_server(tmp_path, Service(), hello_s=SOON_S) as served:
        yield served


@pytest.mark.parametrize("said", SPOKEN)
def test_who_says_no_hello_is_cut_off(impatient: tuple[Serving, ClientServer], said: str) -> None:
    serving, server = impatient
    with Client(serving.address) as client, stranger(serving.address, said) as silent:
        assert is_cut_off(silent)
        await_that(lambda: server.silent_count == 0, 30, "it is forgotten")
        # Longer than it was given itself: who has said hello stays.
        with stranger(serving.address) as second:
            assert is_cut_off(second)
        assert client.call("test", "echo", n=1) == {"n": 1}
    await_that(lambda: connections_at(serving.address) <= 1, 30, "libzmq has closed them")


def test_of_too_many_the_oldest_goes(tmp_path: Path) -> None:
    with (
        client_server(tmp_path, Service(), most_silent=lambda: 8, hello_s=NEVER_S) as (
            serving,
            server,
        ),
        ExitStack() as held,
    ):
        client = held.enter_context(Client(serving.address))
        assert client.call("test", "echo") == {}  # so its hello has been read
        crowd = [held.enter_context(stranger(serving.address)) for _ in range(200)]
        for connection in crowd[:-8]:
            assert is_cut_off(connection)
        await_that(lambda: server.silent_count == 8, 30, "as many as may be silent are left")
        assert client.call("test", "echo") == {}
        with Client(serving.address) as late:
            assert late.call("test", "echo") == {}
        # The client, the crowd's last and what libzmq listens with.
        await_that(lambda: connections_at(serving.address) <= 10, 30, "the others are closed")


def test_of_too_many_those_of_the_process_that_has_most_go(tmp_path: Path) -> None:
    with (
        client_server(tmp_path, Service(), most_silent=lambda: 8, hello_s=NEVER_S) as (
            serving,
            server,
        ),
        Elsewhere(serving.address) as other,
        ExitStack() as held,
    ):
        await_that(lambda: server.silent_count == 1, 30, "it is the oldest")
        for _ in range(100):
            held.enter_context(stranger(serving.address))
        await_that(lambda: server._strangers and server._strangers.cut_off >= 93, 30, "all came")
        assert not other.is_cut_off()


class Elsewhere:
    """A silent connection of another process."""

    PROGRAM = """
import select, socket, sys
with socket.socket(socket.AF_UNIX) as one:
    one.connect(sys.argv[1])
    print(flush=True)
    sys.stdin.readline()
    one.setblocking(False)
    try:
        while one.recv(4096):
            pass
        print("gone", flush=True)
    except BlockingIOError:
        print("here", flush=True)
"""

    def __init__(self, path: str) -> None:
        argv = [sys.executable, "-I", "-c", self.PROGRAM, path]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True)

    def __enter__(self) -> "Elsewhere":
        assert self._process.stdout is not None and self._process.stdout.readline() == "\n"
        return self

    def __exit__(self, *_what: object) -> None:
        self._process.communicate()

    def is_cut_off(self) -> bool:
        return self._process.communicate("\n", timeout=30)[0].split() == ["gone"]


def test_f58_in_a_flood_the_socket_is_found_now_and_then_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libzmq accepts without end: nobody may come while the loop has others to end."""
    monkeypatch.setattr(connections, "CROWD", 50)
    monkeypatch.setattr(connections, "CROWD_S", NEVER_S)
    monkeypatch.setattr(connections, "REST_S", NEVER_S)
    with (
        client_server(tmp_path, Service(), most_silent=lambda: 8, hello_s=NEVER_S) as (
            serving,
            server,
        ),
        ExitStack() as held,
    ):
        client = held.enter_context(Client(serving.address))
        assert client.call("test", "echo") == {}

        def flood() -> None:  # on the server's loop, which is held up meanwhile
            for _ in range(100):
                held.enter_context(stranger(serving.address))

        strangers = server._strangers
        assert strangers is not None
        for rounds in range(1, 3):
            serving.do(flood)
            await_that(lambda: strangers.rests, 20, "it is a flood")
            with pytest.raises(FileNotFoundError), stranger(serving.address):
                pass
            serving.do(server.listen_again)  # it is not deleted, though it looks so
            assert not os.path.exists(serving.address)
            assert client.call("test", "echo", n=rounds) == {"n": rounds}
            came = 100 * rounds - 8
            await_that(lambda: strangers.cut_off == came, 20, "all but the last are cut off")  # noqa: B023
            serving.do(strangers._turn)  # a few get in
            assert strangers.rests
            serving.do(strangers._turn)  # and since they were few, all
            assert not strangers.rests
            with Client(serving.address) as late:
                assert late.call("test", "echo") == {}


def test_a_socket_that_a_dead_manager_has_hidden_is_removed(tmp_path: Path) -> None:
    hidden = tmp_path / f"c{sockets.HIDDEN}"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(hidden))
    with client_server(tmp_path, Service()) as (serving, _server):
        assert not hidden.exists()
        with Client(serving.address) as client:
            assert client.call("test", "echo") == {}


def test_a_connection_that_closes_itself_is_forgotten(tmp_path: Path) -> None:
    with client_server(tmp_path, Service(), hello_s=NEVER_S) as (serving, server):
        for said in SPOKEN:
            with stranger(serving.address, said):
                await_that(lambda: server.silent_count == 1, 30, "it is seen")
            await_that(lambda: server.silent_count == 0, 30, "it is forgotten")


def test_a_shim_is_held_to_it_too(tmp_path: Path) -> None:
    hellos: list[str] = []
    router = ShimRouter(
        GENERATION, lambda peer: hellos.append(peer.incarnation), lambda *_: True, hello_s=SOON_S
    )
    me = b"00112233aabbccdd"
    with shim_router(tmp_path, router) as serving, sockets.context() as context:
        shim = zeromq.connect_dealer(context, serving.address, sockets.SHIM_HWM, me)
        assert shim.poll(20_000)
        shim.recv_multipart()
        identity = {"incarnation": me.decode(), "pid": os.getpid(), "version": "1"}
        shim.send_multipart(codec.encode(codec.Hello(GENERATION, 1, [], identity)))
        await_that(lambda: hellos, 30, "it has said hello")
        with stranger(serving.address, "a probe") as silent:
            assert is_cut_off(silent)
        shim.send_multipart(codec.encode(codec.Event(GENERATION, 1, "t", 0, {})))
        assert shim.poll(20_000)
        assert codec.decode(shim.recv_multipart(zmq.DONTWAIT)) == codec.Ack(GENERATION, 1)
        shim.close(0)
