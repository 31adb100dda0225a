"""The DEALER of shim and ctl against a ROUTER of libzmq: they are the two ends of every wire."""

import os
import resource
import select
import socket
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from lighter.daemon.wire import sockets
from lighter.proto import codec, zmtp
from lighter.proto.dealer import Dealer
from lighter.proto.errors import InvalidArgument

WAIT_S = 20.0


@pytest.fixture
def path() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="lighter-", dir="/tmp") as folder:
        yield f"{folder}/x.sock"


@pytest.fixture
def context() -> Iterator["zmq.Context[zmq.Socket[bytes]]"]:
    made = sockets.context()
    yield made
    made.destroy(linger=0)


@pytest.fixture
def router(context: Any, path: str) -> "zmq.Socket[bytes]":
    return sockets.bind_router(context, path, 0o600, -1, sockets.SHIM_HWM)


def take(dealer: Dealer) -> list[list[bytes]]:
    """What comes next; empty when the peer has gone."""
    while not dealer.lost:
        ready = select.select([dealer], [dealer] if dealer.unsent else [], [], WAIT_S)
        assert ready[0] or ready[1], "nothing came"
        dealer.flush()
        if messages := list(dealer.receive()):
            return messages
    return []


def greeted(router: "zmq.Socket[bytes]", path: str, routing_id: bytes = b"abc") -> Dealer:
    """A dealer that the router has heard of."""
    dealer = Dealer(path, routing_id, 4096)
    assert dealer.connect()
    assert select.select([dealer], [], [], WAIT_S)[0]
    assert list(dealer.receive()) == []
    while not router.poll(20):
        list(dealer.receive())
    peer, probe = router.recv_multipart()
    assert (peer, probe) == (routing_id, b"")
    return dealer


def test_messages_go_both_ways(router: "zmq.Socket[bytes]", path: str) -> None:
    dealer = greeted(router, path)
    for size in (0, 1, 255, 256, 100_000):
        router.send_multipart([b"abc", b"\1", bytes(size)])
        assert take(dealer) == [[b"\1", bytes(size)]]
        assert dealer.send([b"\1", bytes(size)])
        assert router.poll(int(WAIT_S * 1000))
        assert router.recv_multipart() == [b"abc", b"\1", bytes(size)]
    dealer.close()


def test_without_a_free_descriptor_nobody_is_met(path: str) -> None:
    dealer = Dealer(path, b"abc", 4096)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
        try:
            assert not dealer.connect()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert dealer.connect()
        dealer.close()


def test_a_message_of_the_largest_size_goes_in_pieces(
    router: "zmq.Socket[bytes]", path: str
) -> None:
    dealer = greeted(router, path)
    body = os.urandom(1 << 20) * 16
    assert len(body) == codec.MAX_MESSAGE_BYTES
    assert dealer.send([b"\1", body])
    assert dealer.unsent
    assert not dealer.send([b"\1", b"next"]), "half a message stands before it"
    while dealer.unsent:
        assert select.select([], [dealer], [], WAIT_S)[1]
        dealer.flush()
    assert router.poll(int(WAIT_S * 1000))
    assert router.recv_multipart()[2] == body
    dealer.close()


def test_the_end_of_the_peer_comes_after_its_last_words(
    router: "zmq.Socket[bytes]", path: str
) -> None:
    dealer = greeted(router, path)
    router.send_multipart([b"abc", b"\1", b"farewell"])
    assert take(dealer) == [[b"\1", b"farewell"]]
    router.close(0)
    assert take(dealer) == []
    assert dealer.peer_closed
    assert not dealer.send([b"\1", b"kill"])
    dealer.close()
    assert not dealer.connect(), "nobody listens any more"


def test_what_was_unsent_never_reaches_the_next_manager(
    router: "zmq.Socket[bytes]", context: Any, path: str
) -> None:
    dealer = greeted(router, path)
    assert dealer.send([b"\1", bytes(8 << 20)])
    assert dealer.unsent
    router.close(0)
    assert take(dealer) == []
    dealer.close()
    second = sockets.bind_router(context, path, 0o600, -1, sockets.SHIM_HWM)
    while not dealer.connect():
        pass
    list(dealer.receive())
    while not second.poll(20):
        list(dealer.receive())
    assert second.recv_multipart() == [b"abc", b""]
    assert not second.poll(200)
    dealer.close()


def test_nothing_is_taken_for_a_manager_that_is_not_there(context: Any, path: str) -> None:
    dealer = Dealer(path, b"abc", 4096)
    assert not dealer.connect()
    assert not dealer.send([b"\1", b"kill"])
    router = sockets.bind_router(context, path, 0o600, -1, sockets.SHIM_HWM)
    assert dealer.connect()
    while not router.poll(20):
        list(dealer.receive())
    assert router.recv_multipart() == [b"abc", b""]
    assert not router.poll(200)
    dealer.close()


def test_each_connection_shows_as_an_empty_message(context: Any, path: str) -> None:
    for _ in range(3):
        router = sockets.bind_router(context, path, 0o600, -1, sockets.SHIM_HWM)
        dealer = greeted(router, path)
        router.close(0)
        assert take(dealer) == []
        dealer.close()


def test_a_message_waits_for_the_peers_ready(path: str) -> None:
    """libzmq closes a connection on which one comes earlier than it has sent its own."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        dealer = Dealer(path, b"abc", 4096)
        assert dealer.connect()
        opened, _ = listener.accept()
        with opened:
            assert opened.recv(4096) == zmtp.opening(b"abc")
            opened.sendall(zmtp.GREETING)
            assert select.select([dealer], [], [], WAIT_S)[0]
            assert list(dealer.receive()) == []
            assert not select.select([opened], [], [], 0.2)[0]
            opened.sendall(zmtp.command(b"\x05READY"))
            assert select.select([dealer], [], [], WAIT_S)[0]
            assert list(dealer.receive()) == []
            assert opened.recv(4096) == zmtp.PROBE
        dealer.close()


def test_an_oversize_message_costs_the_connection(router: "zmq.Socket[bytes]", path: str) -> None:
    dealer = greeted(router, path)
    router.send_multipart([b"abc", b"\1", bytes(codec.MAX_MESSAGE_BYTES + 65)])
    assert take(dealer) == []
    assert dealer.lost
    dealer.close()


def test_nobody_is_reached_at_a_path_that_no_socket_can_have() -> None:
    for path in ("x.sock", "@x", "/" + "x" * 108):
        with pytest.raises(InvalidArgument):
            Dealer(path, b"", 4096)
    assert not Dealer("/no/such/socket", b"", 4096).connect()
