"""SEC-68 and faults F73, F74 on a running manager: floods, half greetings, giants, dead clients.

Whatever a peer sends: the manager stays the same process, grows by less than 32 MiB, and answers
others.
"""

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgpack
import pytest
import zmq

from lighter.daemon.wire import sockets
from lighter.proto import codec
from tests import lives, zeromq
from tests.harness import Lighterd, await_that
from tests.integration.test_bad_input import rss_kib
from tests.lives import ask
from tests.unit.daemon.hostile import BODIES

pytestmark = pytest.mark.root
GROWTH_KIB = 32 << 10
ANSWER_S = 20.0
ANSWER_MS = int(ANSWER_S * 1000)
# ZMTP 3.1 greeting (https://rfc.zeromq.org/spec/23/): signature, version, mechanism NULL.
GREETING = b"\xff" + b"\0" * 8 + b"\x7f\x03\x01NULL" + b"\0" * 16 + b"\0" + b"\0" * 31


@contextmanager
def unharmed(lighterd: Lighterd) -> Iterator[None]:
    """What happens inside leaves the manager as it was, but for a little memory."""
    with lighterd.client() as client:
        client.call("version", "get")
        pid, before = lighterd.pid, rss_kib(lighterd.pid)
        fds = len(os.listdir(f"/proc/{pid}/fd"))
        yield
        client.call("tasks", "list", timeout_s=ANSWER_S)
    assert lighterd.process is not None and lighterd.process.poll() is None
    assert rss_kib(pid) - before < GROWTH_KIB
    await_that(lambda: len(os.listdir(f"/proc/{pid}/fd")) <= fds, 40, "descriptors are back")


@contextmanager
def dealer(path: str) -> Iterator["zmq.Socket[bytes]"]:
    context: zmq.Context[zmq.Socket[bytes]] = sockets.context()
    try:
        # A shim's has 16 hex digits, a client leaves it to the manager.
        routing_id = os.urandom(8).hex().encode() if path.endswith("/shims.sock") else b""
        yield zeromq.connect_dealer(context, path, 1000, routing_id)
    finally:
        context.destroy(0)


def both(lighterd: Lighterd) -> list[str]:
    return [lighterd.address, str(lighterd.state / "shims.sock")]


def test_sec68_hostile_bodies_and_part_counts_on_both_sockets(lighterd: Lighterd) -> None:
    with unharmed(lighterd):
        for path in both(lighterd):
            with dealer(path) as socket_:
                assert socket_.poll(ANSWER_MS)
                generation = codec.decode(socket_.recv_multipart()).generation
                hello = codec.Hello(generation, 1, [], {"kind": "client", "pid": 1})
                socket_.send_multipart(codec.encode(hello))
                for body in BODIES.values():
                    for version in (b"\0", b"\1", b"\xff", b""):
                        socket_.send_multipart([version, body])
                for count in (1, 3, 100):
                    socket_.send_multipart([b"x"] * count)
                # In order: the answer to a last probe tells that all before it was read.
                socket_.send_multipart([b""])
                assert socket_.poll(ANSWER_MS)
    assert "Traceback" not in lighterd.log_end(1 << 20)


def test_sec68_a_message_over_the_cap_costs_its_own_connection_alone(lighterd: Lighterd) -> None:
    with unharmed(lighterd):
        for path in both(lighterd):
            for size in (codec.MAX_MESSAGE_BYTES + 65, 17 << 20):
                with dealer(path) as socket_:
                    assert socket_.poll(ANSWER_MS)
                    socket_.recv_multipart()
                    socket_.send_multipart([b"\1", b"\0" * size])
                    # libzmq cuts the connection; ours connects again and is welcomed again.
                    assert socket_.poll(ANSWER_MS)
                    assert isinstance(codec.decode(socket_.recv_multipart()), codec.Welcome)
        with dealer(lighterd.address) as socket_:
            assert socket_.poll(ANSWER_MS)
            socket_.recv_multipart()
            socket_.send_multipart([b"\1", b"\0" * (codec.MAX_MESSAGE_BYTES + 1)])
            socket_.send_multipart([b""])  # within libzmq's margin: dropped, the connection stays
            assert socket_.poll(ANSWER_MS)


@pytest.mark.parametrize(
    "count", [10_000, pytest.param(100_000, marks=[pytest.mark.soak])], ids="{} frames".format
)
def test_sec68_a_flood_of_tiny_frames(lighterd: Lighterd, count: int) -> None:
    with unharmed(lighterd), lighterd.client() as other:
        for path in both(lighterd):
            with dealer(path) as socket_:
                assert socket_.poll(ANSWER_MS)
                for number in range(count):
                    socket_.send_multipart([b"\1", b"\xc0"])
                    if number % (count // 10) == 0:
                        other.call("version", "get", timeout_s=ANSWER_S)


def test_sec68_greetings_that_stop_half_way(lighterd: Lighterd) -> None:
    with unharmed(lighterd), lighterd.client() as other:
        held = []
        for path in both(lighterd):
            for length in (0, 1, 10, 12, 33, 63, 64):
                held.append(socket.socket(socket.AF_UNIX))
                held[-1].connect(path)
                held[-1].sendall(GREETING[:length])
            for noise in (os.urandom(1000), b"\0" * 1000, b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64):
                held.append(socket.socket(socket.AF_UNIX))
                held[-1].connect(path)
                try:
                    held[-1].sendall(noise)
                except BrokenPipeError:
                    pass  # it was cut off already
        other.call("tasks", "list", timeout_s=ANSWER_S)
        for connection in held:
            connection.close()


def test_f73_what_comes_again_and_what_was_for_an_earlier_manager_is_dropped(
    lighterd: Lighterd, busybox: str
) -> None:
    lives.begin(lighterd, busybox, "c", "sleep", "1000")
    before = ask(lighterd, "system.health")["dropped"]
    with lighterd.client() as client:
        here = {"namespace": "default"}
        which = {"id": "c", "exec_id": ""}
        generation = client.welcome.generation
        wait = codec.Request(generation, 77, "tasks", "wait", None, here, which)
        stale = codec.Request(
            generation - 1, 78, "namespaces", "create", None, here, {"name": "stale", "labels": {}}
        )
        for request in (wait, wait, wait, stale):
            client.send(request)
        await_that(
            lambda: ask(lighterd, "system.health")["dropped"] == before + 3,
            *(ANSWER_S, "two repeats and one that is stale are counted"),
        )
        ask(lighterd, "tasks.kill", signal=signal.SIGKILL, all=False, **which)
        end = time.monotonic() + ANSWER_S
        message, _ = client.receive(end, "the end is told")
        assert isinstance(message, codec.Response) and message.ident == 77
        client.send(codec.Request(generation, 79, "namespaces", "list", None, here, {}))
        message, _ = client.receive(end, "the next answer")
        assert isinstance(message, codec.Response) and message.ident == 79, "it is told once"
        assert "stale" not in [row["name"] for row in message.body["namespaces"]]


CLIENT = """
import os, select, sys
from lighter.proto import codec
from lighter.proto.dealer import Dealer
dealer = Dealer(sys.argv[1], b"", 65536)
assert dealer.connect()
def messages():
    while True:
        assert select.select([dealer], [], [], 5)[0]
        yield from map(codec.decode, dealer.receive())
came = messages()
generation = next(came).generation
assert dealer.send(codec.encode(codec.Hello(generation, 1, [], {})))
calls = (
    ("events", "subscribe", {"since": 0, "follow": True}),
    ("logs", "read", {"id": "x", "follow": True}),
    ("tasks", "wait", {"id": "x", "exec_id": ""}),
)
for ident, (service, method, body) in enumerate(calls):
    call = codec.Request(generation, ident, service, method, None, {"namespace": "default"}, body)
    assert dealer.send(codec.encode(call))
seen = set()
while seen != {0, 1}:
    seen.add(next(came).ident)
print(flush=True)
sys.stdin.read()
os.kill(os.getpid(), 9)
"""


def test_f74_what_a_dead_client_had_under_way_ends_with_it(
    lighterd: Lighterd, busybox: str
) -> None:
    lighterd.ctl("run", "-d", busybox, "x", "sh", "-c", "echo hi; sleep 1000", check=True)
    with lighterd.client() as client:
        # The ctl that ran the container may not have been missed yet.
        await_that(lambda: client.call("system", "health")["clients"] == 1, 30, "we are alone")
        before = client.call("system", "health")
        for _ in range(5):
            dying = subprocess.Popen(
                [sys.executable, "-I", "-c", CLIENT, lighterd.address],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            with dying:
                assert dying.stdin is not None and dying.stdout is not None
                assert dying.stdout.readline() == b"\n"
                dying.stdin.close()

        def same() -> bool:
            now = client.call("system", "health")
            return bool(now["clients"] == before["clients"] and now["fds"] <= before["fds"])

        await_that(same, 30, "clients and descriptors are back")
        assert client.call("tasks", "get", id="x")["task"]["status"] == "running"


def test_f74_a_client_that_floods_and_never_reads_is_dropped(lighterd: Lighterd) -> None:
    with unharmed(lighterd), dealer(lighterd.address) as socket_, lighterd.client() as other:
        before = other.call("system", "health")["clients"]
        assert socket_.poll(ANSWER_MS)
        generation = codec.decode(socket_.recv_multipart()).generation
        socket_.send_multipart(codec.encode(codec.Hello(generation, 1, [], {})))
        limit = time.monotonic() + 5
        for ident in range(20_000):
            call = codec.Request(generation, ident, "version", "get", None, {}, {})
            try:
                socket_.send_multipart(codec.encode(call), zmq.DONTWAIT)
            except zmq.Again:
                if time.monotonic() > limit or not socket_.poll(200, zmq.POLLOUT):
                    break  # the manager takes no more: its own bound
        gone = f"drop client pid={os.getpid()}: it does not read"
        await_that(lambda: gone in lighterd.log_end(1 << 20), 30, "it is dropped")
        await_that(lambda: other.call("system", "health")["clients"] <= before, 30, "it is gone")


def test_sec67_ext_types_and_pickles_are_protocol_errors(lighterd: Lighterd) -> None:
    with lighterd.client() as client:
        dropped = client.call("system", "health")["dropped"]
        packed = msgpack.packb([2, client.welcome.generation, 1, "version", "get", None, {}, {}])
        client.socket.send_multipart([b"\1", packed[:-1] + b"\xc7\x03\x01abc"])
        client.socket.send_multipart([b"\1", BODIES["pickle"]])
        assert client.call("system", "health")["dropped"] == dropped + 2


def test_the_limit_of_descriptors_is_raised_at_the_start(lighterd: Lighterd) -> None:
    soft, hard = resource.prlimit(lighterd.pid, resource.RLIMIT_NOFILE)
    assert soft == hard
