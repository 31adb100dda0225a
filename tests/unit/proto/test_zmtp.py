"""ZMTP as bytes: what a DEALER says, what it understands, and what it refuses."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighter.proto import zmtp

READY = zmtp.command(b"\x05READY\x0bSocket-Type\0\0\0\x06ROUTER\x08Identity\0\0\0\0")


def welcomed() -> zmtp.Decoder:
    """A decoder behind a whole handshake."""
    decoder = zmtp.Decoder()
    assert decoder.feed(zmtp.GREETING + READY) == []
    assert decoder.ready
    return decoder


def test_the_opening_is_what_the_specification_says() -> None:
    opening = zmtp.opening(b"abc")
    assert len(zmtp.GREETING) == zmtp.GREETING_BYTES == 64
    assert opening[:10] == b"\xff" + bytes(7) + b"\x01\x7f"
    assert opening[10:32] == b"\x03\x01NULL" + bytes(16)
    flags, size = opening[64:66]
    assert flags == zmtp.COMMAND
    assert opening[66:] == (b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\x03abc")
    assert size == len(opening) - 66


def test_the_probe_waits_for_ready() -> None:
    decoder = zmtp.Decoder()
    decoder.feed(zmtp.GREETING)
    assert decoder.replies == b""
    decoder.feed(READY)
    assert decoder.replies == zmtp.PROBE


@given(
    st.lists(st.lists(st.binary(max_size=600), min_size=1, max_size=zmtp.MAX_FRAMES), max_size=5),
    st.integers(1, 97),
)
def test_messages_come_out_as_they_went_in_however_they_are_cut(
    messages: list[list[bytes]], piece: int
) -> None:
    data = zmtp.GREETING + READY + b"".join(map(zmtp.encode, messages))
    decoder = zmtp.Decoder()
    came = []
    for at in range(0, len(data), piece):
        came += decoder.feed(data[at : at + piece])
    assert came == messages


def test_a_ping_is_answered_with_its_context() -> None:
    decoder = welcomed()
    decoder.replies = b""
    assert decoder.feed(zmtp.command(b"\x04PING\0\x0acontext")) == []
    assert decoder.replies == zmtp.command(b"\x04PONGcontext")


def test_a_peer_that_asks_and_takes_no_answers_is_given_up() -> None:
    decoder = welcomed()
    ping = zmtp.command(b"\x04PING\0\x0a" + bytes(500))
    with pytest.raises(zmtp.Violation, match="takes no answers"):
        for _ in range(1000):
            decoder.feed(ping)
    assert len(decoder.replies) < zmtp.MAX_REPLY_BYTES + 1024
    # One whose answers are taken may ask for ever.
    decoder = welcomed()
    for _ in range(1000):
        decoder.feed(ping)
        decoder.replies = b""


BROKEN = {
    "HTTP/2": b"\0\0\0\4\0\0\0\0\0",
    "half a signature": b"\xff" + bytes(8) + b"\0",
    "an old peer": zmtp.GREETING[:10] + b"\x01\0" + bytes(52),
    "another mechanism": zmtp.GREETING[:12] + b"PLAIN".ljust(20, b"\0") + bytes(32),
    "a message before READY": zmtp.GREETING + zmtp.encode([b"x"]),
    "unknown flags": zmtp.GREETING + b"\x08\0",
    "a command in parts": zmtp.GREETING + bytes((zmtp.COMMAND | zmtp.MORE, 0)),
    "a refusal": zmtp.GREETING + zmtp.command(b"\x05ERROR\x02no"),
    "a long command": zmtp.GREETING + struct.pack(">BQ", zmtp.COMMAND | zmtp.LONG, 4096),
    "a claim of 4 GiB": zmtp.GREETING + READY + struct.pack(">BQ", zmtp.LONG, 1 << 32),
    "many frames": zmtp.GREETING + READY + bytes((zmtp.MORE, 0)) * (zmtp.MAX_FRAMES + 1),
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_is_no_zmtp_ends_the_connection(how: str) -> None:
    with pytest.raises(zmtp.Violation):
        zmtp.Decoder().feed(BROKEN[how])


def test_a_message_in_frames_is_capped_as_a_whole() -> None:
    decoder = welcomed()
    half = struct.pack(">BQ", zmtp.LONG | zmtp.MORE, zmtp.MAX_BYTES // 2 + 1)
    decoder.feed(half + bytes(zmtp.MAX_BYTES // 2 + 1))
    with pytest.raises(zmtp.Violation):
        decoder.feed(half)


@given(st.binary(max_size=400))
def test_random_bytes_are_a_violation_or_wait_for_more(data: bytes) -> None:
    for decoder in (zmtp.Decoder(), welcomed()):
        try:
            decoder.feed(data)
        except zmtp.Violation:
            pass
