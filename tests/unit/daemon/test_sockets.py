"""Each rule of the wire's sockets, with real ZeroMQ over ipc: they were all found by experiment."""

import os
import socket
import stat
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from lighter.daemon.wire import sockets
from lighter.proto import codec
from lighter.proto.errors import FailedPrecondition, InvalidArgument, Unavailable
from tests import zeromq

PATIENCE_MS = 20_000
Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]


@pytest.fixture
def ctx() -> Iterator[Context]:
    context = sockets.context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def path() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="lighter-", dir="/tmp") as folder:
        yield f"{folder}/x.sock"


def bind(ctx: Context, path: str, high_water: int = sockets.SHIM_HWM, mode: int = 0o600) -> Socket:
    return sockets.bind_router(ctx, path, mode, -1, high_water)


def connect(
    ctx: Context, path: str, routing_id: bytes = b"", high_water: int = sockets.SHIM_HWM
) -> Socket:
    return zeromq.connect_dealer(ctx, path, high_water, routing_id)


def comes(to: Socket, *others: Socket, timeout_ms: int = PATIENCE_MS) -> bool:
    """Whether a message comes `to` this socket while the loops of the `others` run too.

    With IMMEDIATE a connection reaches a DEALER's pipe, and its probe leaves, only when the thread
    that owns the socket looks at it.
    """
    end = time.monotonic() + timeout_ms / 1000
    while True:
        for other in others:
            other.getsockopt(zmq.EVENTS)
        if to.poll(5):
            return True
        if time.monotonic() > end:
            return False


def receive(to: Socket, *others: Socket) -> list[bytes]:
    assert comes(to, *others), "nothing came"
    return to.recv_multipart(zmq.NOBLOCK)


def silent(to: Socket, *others: Socket) -> bool:
    return not comes(to, *others, timeout_ms=300)


def probed(router: Socket, *dealers: Socket) -> bytes:
    """The routing id of the next peer to connect."""
    peer, empty = receive(router, *dealers)
    assert empty == b""
    return peer


def test_a_send_to_a_peer_that_is_gone_fails_instead_of_vanishing(ctx: Context, path: str) -> None:
    router = bind(ctx, path)
    with pytest.raises(zmq.ZMQError) as caught:
        router.send_multipart([b"nobody", b"kill"], zmq.NOBLOCK)
    assert caught.value.errno == zmq.EHOSTUNREACH


def test_a_send_to_a_peer_that_does_not_read_never_blocks(ctx: Context, path: str) -> None:
    router = bind(ctx, path, high_water=2)
    stopped = connect(ctx, path, b"stopped", high_water=2)
    probed(router, stopped)
    chunk = bytes(256 * 1024)
    with pytest.raises(zmq.Again):
        for _ in range(10_000):  # bounded: the high-water marks and the kernel's buffer
            router.send_multipart([b"stopped", chunk], zmq.NOBLOCK)
    other = connect(ctx, path, b"other")
    assert probed(router, other) == b"other"
    router.send_multipart([b"other", b"x"], zmq.NOBLOCK)


def test_a_peer_that_comes_back_before_its_end_is_seen_keeps_its_id(
    ctx: Context, path: str
) -> None:
    router = bind(ctx, path)
    old = connect(ctx, path, b"same")
    probed(router, old)
    new = connect(ctx, path, b"same")
    assert probed(router, new) == b"same"
    router.send_multipart([b"same", b"to the new one"], zmq.NOBLOCK)
    assert receive(new) == [b"to the new one"]
    assert silent(old)


def test_sec_68_a_message_over_the_cap_costs_its_sender_the_connection(
    ctx: Context, path: str
) -> None:
    router = bind(ctx, path)
    dealer = connect(ctx, path, b"a")
    probed(router, dealer)
    dealer.send_multipart([bytes(codec.MAX_MESSAGE_BYTES + 65)], zmq.NOBLOCK)
    assert probed(router, dealer) == b"a"  # connected anew; the message is gone
    assert silent(router, dealer)


def test_the_largest_message_passes(ctx: Context, path: str) -> None:
    router = bind(ctx, path)
    dealer = connect(ctx, path, b"a")
    probed(router, dealer)
    room = codec.MAX_MESSAGE_BYTES - len(codec.encode(codec.Data(1, 1, b""))[1]) - 3
    frames = codec.encode(codec.Data(1, 1, bytes(room)))
    dealer.send_multipart(frames, zmq.NOBLOCK)
    assert receive(router, dealer) == [b"a", *frames]


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda at: at.symlink_to("/nowhere")])
def test_sec_66_what_is_no_socket_is_refused_and_kept(
    ctx: Context, path: str, make: Callable[[Path], None]
) -> None:
    make(Path(path))
    before = os.lstat(path)
    with pytest.raises(FailedPrecondition, match="not a socket"):
        bind(ctx, path)
    assert os.lstat(path) == before


def test_a_stale_socket_is_replaced(ctx: Context, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    router = bind(ctx, path)
    dealer = connect(ctx, path, b"a")
    assert probed(router, dealer) == b"a"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_sec_65_the_mode_is_as_asked_under_any_umask(
    ctx: Context, path: str, mode: int, umask: int
) -> None:
    before = os.umask(umask)
    try:
        bind(ctx, path, mode=mode)
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.lstat(path).st_mode) == mode


def test_sec_65_a_socket_is_never_open_to_more_than_its_mode_says(
    ctx: Context, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even for the moment between its file and the change of its mode."""
    seen = []
    chmod = os.chmod

    def noting(of: str, mode: int) -> None:
        seen.append(stat.S_IMODE(os.lstat(of).st_mode))
        chmod(of, mode)

    monkeypatch.setattr(os, "chmod", noting)
    before = os.umask(0)
    try:
        bind(ctx, path, mode=0o600)
    finally:
        os.umask(before)
    assert seen == [0o600]


def test_a_path_that_cannot_be_bound_says_why(ctx: Context, path: str) -> None:
    with pytest.raises(Unavailable, match=r"bind .*/missing/x\.sock: No such file"):
        bind(ctx, f"{os.path.dirname(path)}/missing/x.sock")


def test_sec_64_no_abstract_sockets(ctx: Context) -> None:
    with pytest.raises(InvalidArgument):
        bind(ctx, "@lighter")
    with pytest.raises(InvalidArgument):
        connect(ctx, "@lighter")


def test_many_peers_connect_at_once(ctx: Context, path: str) -> None:
    """All are there soon; the default backlog of 100 would leave most to a later attempt."""
    router = bind(ctx, path)
    assert int(router.getsockopt(zmq.BACKLOG)) >= 1024
    dealers = {b"%d" % number: connect(ctx, path, b"%d" % number) for number in range(300)}
    assert {probed(router, *dealers.values()) for _ in dealers} == set(dealers)


def test_sec_76_the_peers_pid_and_uid_come_from_the_kernel(ctx: Context, path: str) -> None:
    router = bind(ctx, path)
    dealer = connect(ctx, path, b"claims to be pid 1")
    assert comes(router, dealer)
    _, probe = router.recv_multipart(zmq.NOBLOCK, copy=False)
    with socket.socket(fileno=os.dup(probe.get(zmq.SRCFD))) as peer:
        raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    assert struct.unpack("3i", raw) == (os.getpid(), os.getuid(), os.getgid())


def test_sec_68_raw_garbage_leaves_the_others_served(ctx: Context, path: str) -> None:
    router = bind(ctx, path)
    dealer = connect(ctx, path, b"good")
    probed(router, dealer)
    with socket.socket(socket.AF_UNIX) as half, socket.socket(socket.AF_UNIX) as garbage:
        half.connect(path)
        half.sendall(b"\xff\x00\x00")  # half of a ZMTP greeting, then silence
        garbage.connect(path)
        garbage.sendall(b"\xff" * 64 + bytes(range(256)) * 16)
        started = time.monotonic()
        for number in range(100):
            dealer.send_multipart([b"%d" % number], zmq.NOBLOCK)
            assert receive(router, dealer) == [b"good", b"%d" % number]
        assert time.monotonic() - started < 10


def test_libzmq_is_new_enough() -> None:
    assert zmq.zmq_version_info() >= (4, 3, 5)
