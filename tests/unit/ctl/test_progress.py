"""What a transfer shows: lines where nobody watches, bars on a terminal."""

import fcntl
import io
import os
import pty
import struct
import termios
from typing import Any

import pytest

from lighter.ctl.progress import Lines, shown
from lighter.proto.errors import Unavailable
from tests.images import REFERENCE

DIGEST = "sha256:" + "a" * 64
RESULT = {"image": REFERENCE, "digest": DIGEST, "download_s": 1.25, "unpack_s": 2.5}


def item(status: str, kind: str = "", done_bytes: int = 0, total_bytes: int = 0) -> dict[str, Any]:
    return {
        "status": status,
        "ref": REFERENCE,
        "digest": DIGEST,
        "kind": kind,
        "done_bytes": done_bytes,
        "total_bytes": total_bytes,
    }


PULL = [
    item("resolving"),
    item("resolved"),
    item("waiting", "layer", 0, 4096),
    item("downloading", "layer", 1024, 4096),
    item("downloading", "layer", 4096, 4096),
    item("done", "layer", 4096, 4096),
    item("done", "layer", 4096, 4096),
    item("unpacking", "", 4096, 4096),
    item("done"),
]


def test_lines_tell_each_piece_once_and_what_it_took() -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    for one in PULL:
        lines.show(one)
    lines.finish(RESULT)
    told = stream.getvalue().splitlines()
    assert told[0] == f"{REFERENCE}: resolved {DIGEST}"
    assert told[1] == f"layer-{DIGEST}: done 4.0 KiB"
    assert told[2] == f"unpacked {DIGEST}"
    # 1024 of the bytes were there when the download began.
    assert told[3].startswith("elapsed: 0.0 s  total: 3.0 KiB (")
    assert told[4:] == ["download: 1.2 s  unpack: 2.5 s", f"{REFERENCE}: done {DIGEST}"]


def test_control_characters_of_a_registry_stay_out_of_the_terminal() -> None:
    stream = io.StringIO()
    Lines(stream).show({**item("resolved"), "ref": "x\x1b[31m"})
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("columns, bars", [(120, True), (40, False)])
def test_a_terminal_that_is_wide_enough_gets_bars(
    columns: int, bars: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    with os.fdopen(theirs, "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        monkeypatch.setenv("TERM", "xterm")
        with shown() as display:
            for one in PULL:
                display.show(one)
            display.finish(RESULT)
        stream.flush()
        told = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert (f"layer-{'a' * 12}" in told and "100%" not in told) == bars
    assert ("━" in told) == bars
    assert "download: 1.2 s" in told


def test_an_error_leaves_the_terminal_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars hide the cursor; it is shown again whatever ends them."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "100")
        fcntl.ioctl(stream, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        with pytest.raises(Unavailable):
            with shown() as display:
                display.show(PULL[3])
                raise Unavailable("download it: the network is down")
        stream.flush()
        told = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert told.rindex("\x1b[?25h") > told.rindex("\x1b[?25l")
