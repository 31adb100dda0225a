"""SEC-69: floods of resets, of headers and of nesting cost bounded memory and harm nobody."""

import os
import re
import resource
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from lighter.daemon.grpc.pb import diff_pb2, version_pb2
from lighter.daemon.limits import GRPC
from lighter.proto.version import VERSION
from tests.grpc.client import Api, code
from tests.grpc.space import Space, descriptor, refused
from tests.harness import await_that

RESETS = 50_000
MIB = 1 << 20
GROWTH = 96 * MIB  # what allocators keep of a flood; twice the flood is no more
PEAK = 2 * GROWTH

# RFC 9113: frame types and flags.
_HEADERS, _RST_STREAM, _SETTINGS, _PING, _ACK, _END_HEADERS = 1, 3, 4, 6, 1, 4
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def resident(pid: int) -> int:
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def peak(pid: int) -> int:
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(line) << 10


@pytest.fixture
def bounded(space: Space) -> Iterator[Space]:
    """The manager neither grows, not even for a while, nor stops to answer."""
    answers(space)
    before = resident(space.lighterd.pid)
    Path(f"/proc/{space.lighterd.pid}/clear_refs").write_text("5")  # proc(5): the peak, from now
    yield space
    answers(space)
    highest = peak(space.lighterd.pid)
    assert highest < before + PEAK, f"{highest >> 20} MiB, of {before >> 20} MiB"
    await_that(
        lambda: resident(space.lighterd.pid) < before + GROWTH,
        30,
        f"the manager has its memory back, of {before >> 20} MiB",
    )


def answers(space: Space) -> None:
    with Api(space.api.path) as api:
        assert api.call(version_pb2, "Version", "Version").version == VERSION


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header without indexing (RFC 7541, 6.2.2); lengths below 127."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def test_sec_69_streams_that_are_opened_and_reset(bounded: Space) -> None:
    headers = b"".join(
        literal(name, value)
        for name, value in (
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", b"/containerd.services.version.v1.Version/Version"),
            (b":authority", b"localhost"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
        )
    )
    for _ in range(3):
        flood(bounded.api.path, headers)
        answers(bounded)


def flood(path: str, headers: bytes) -> None:
    """RESETS calls that are begun and reset, over as many connections as the server asks for."""
    done = connections = 0
    end = time.monotonic() + 120
    while done < RESETS:
        assert time.monotonic() < end, f"{done} resets over {connections} connections"
        connections += 1
        with socket.socket(socket.AF_UNIX) as attack:
            attack.connect(path)
            attack.sendall(_PREFACE + frame(_SETTINGS, 0, 0) + frame(_SETTINGS, _ACK, 0))
            attack.setblocking(False)
            stream = 1
            while done < RESETS and stream < 1 << 30:
                burst = b"".join(
                    frame(_HEADERS, _END_HEADERS, number, headers)
                    + frame(_RST_STREAM, 0, number, struct.pack(">I", 8))
                    for number in range(stream, stream + 200, 2)
                )
                if not pushed(attack, burst):
                    break  # the server had enough of this one
                stream += 200
                done += 100


def test_sec_69_pings_without_end(bounded: Space) -> None:
    """Who pings on with nothing else to say is told so, and cut off."""
    ping = frame(_PING, 0, 0, b"12345678")
    with socket.socket(socket.AF_UNIX) as attack:
        attack.settimeout(30)
        attack.connect(bounded.api.path)
        attack.sendall(_PREFACE + frame(_SETTINGS, 0, 0) + frame(_SETTINGS, _ACK, 0))
        attack.sendall(ping * 1000)
        heard = b""
        while b"too_many_pings" not in heard:
            heard += (got := attack.recv(65536))
            assert got, "it hangs up without a word"
        attack.setblocking(False)
        if not all(pushed(attack, ping * 1000) for _ in range(50)):
            return
        # On a busy machine grpc, once in some hundred times, reads on until nothing more comes.
        attack.settimeout(120)
        with suppress(ConnectionError):
            while attack.recv(65536):
                pass


def pushed(attack: socket.socket, data: bytes) -> bool:
    """Send all, throwing away what comes back; False when the other side hung up."""
    end = time.monotonic() + 60
    rest = memoryview(data)
    while rest:
        assert time.monotonic() < end, "the server neither reads nor hangs up"
        try:
            if attack.recv(65536) == b"":
                return False
        except BlockingIOError:
            pass
        except OSError:
            return False
        try:
            rest = rest[attack.send(rest) :]
        except BlockingIOError:
            time.sleep(0.001)
        except OSError:
            return False
    return True


def test_sec_69_headers_without_end(bounded: Space) -> None:
    channel = grpc.insecure_channel(
        f"unix:{bounded.api.path}", options=[("grpc.max_metadata_size", 4 * MIB)]
    )
    with channel:
        method = channel.unary_unary("/containerd.services.version.v1.Version/Version")
        for headers in (
            [("x", "y" * MIB)],
            [(f"x{number}", "y" * 1000) for number in range(1000)],
            [("containerd-namespace", "n" * MIB)],
            [("containerd-lease", "n" * (64 << 10))],
        ):
            with pytest.raises(grpc.RpcError) as caught:
                method(b"", metadata=headers, timeout=30)
            assert code(caught.value) in ("RESOURCE_EXHAUSTED", "UNAVAILABLE", "INTERNAL")
        assert method(b"", metadata=[("x", "y" * 4096)], timeout=30)


def test_sec_69_headers_below_the_limit_are_never_refused(bounded: Space) -> None:
    """From a soft limit on, by default below the hard one, gRPC refuses them at random."""
    with grpc.insecure_channel(f"unix:{bounded.api.path}") as channel:
        method = channel.unary_unary("/containerd.services.version.v1.Version/Version")
        for _ in range(50):
            assert method(b"", metadata=[("x", "y" * 14_000)], timeout=30)


def test_sec_69_messages_within_messages(bounded: Space) -> None:
    value = b""
    for _ in range(10_000):  # an Any in an Any in an Any…
        value = b"\x0a\x13google.protobuf.Any\x12" + varint(len(value)) + value
    payload = {"x": {"type_url": "google.protobuf.Any", "value": value}}
    with refused("NOT_FOUND", "mounts none"):  # nothing that takes part has this payload
        bounded.diff("Apply", diff=descriptor(b"x"), payloads=payload)
    path = f"/{diff_pb2.DESCRIPTOR.services_by_name['Diff'].full_name}/Apply"
    with grpc.insecure_channel(f"unix:{bounded.api.path}") as channel:
        for nested in (b"\x0b" * 100_000, b"\xff" * 100_000, b"\x0a" + varint(1 << 31)):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(path)(nested, metadata=bounded.api.metadata, timeout=30)
            assert code(caught.value) in ("INTERNAL", "UNKNOWN", "INVALID_ARGUMENT")


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def test_sec_69_calls_that_are_begun_and_cancelled(bounded: Space) -> None:
    for _ in range(20):
        calls = [bounded.api.future(version_pb2, "Version", "Version") for _ in range(100)]
        for call in calls:
            call.cancel()


def test_silent_connections_take_no_descriptor_that_the_manager_needs(bounded: Space) -> None:
    pid = bounded.lighterd.pid
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{pid}/fd"))

    before = descriptors()
    silent: list[socket.socket] = []
    try:
        for _ in range(GRPC.most + 500):
            silent.append(socket.socket(socket.AF_UNIX))
            silent[-1].settimeout(10)
            silent[-1].connect(bounded.api.path)
        await_that(lambda: descriptors() >= before + 100, 20, "they are taken")
        with bounded.lighterd.client() as client:
            assert client.call("version", "get")["version"] == VERSION
        assert descriptors() < before + GRPC.most + 50
        await_that(lambda: descriptors() < before + 50, 60, "who says nothing is let go")
        answers(bounded)
    finally:
        for one in silent:
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
