"""What a transfer shows: lines where nobody watches, bars on a terminal."""

import fcntl
import io
import os
import pty
import struct
import termios
import threading
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


class Screen:
    """A terminal of some columns as standard output; `told` is all that came, once it is over."""

    def __init__(self, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self._stream = os.fdopen(theirs, "w")
        self._reader = threading.Thread(target=self._read, daemon=True)
        self.told = ""
        monkeypatch.setattr("sys.stdout", self._stream)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("COLUMNS", raising=False)

    def __enter__(self) -> "Screen":
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._reader.join(10)
        os.close(self._ours)

    def _read(self) -> None:
        came = b""
        try:
            while data := os.read(self._ours, 1 << 16):
                came += data
        except OSError:  # EIO: the other side is closed
            pass
        self.told = came.decode()


@pytest.mark.parametrize("columns, bars", [(120, True), (40, False)])
def test_a_terminal_that_is_wide_enough_gets_bars(
    columns: int, bars: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Screen(columns, monkeypatch) as screen:
        with shown() as display:
            for one in PULL:
                display.show(one)
            display.finish(RESULT)
    assert (f"layer-{'a' * 12}" in screen.told) == bars
    assert ("━" in screen.told) == bars
    # How much of it, how fast, and how long still: 3072 of 4096 bytes in 0.6 s.
    assert ("4.0/4.1 kB" in screen.told or "4.0/4.0 KiB" in screen.told) == bars
    assert ("B/s" in screen.told.partition("elapsed")[0]) == bars
    assert ("0:00" in screen.told) == bars
    assert f"{REFERENCE}: resolved {DIGEST}\r\n" in screen.told
    assert "download: 1.2 s" in screen.told


def test_an_error_leaves_the_terminal_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars hide the cursor; it is shown again whatever ends them."""
    with Screen(100, monkeypatch) as screen:
        with pytest.raises(Unavailable):
            with shown() as display:
                display.show(PULL[3])
                raise Unavailable("download it: the network is down")
    assert screen.told.rindex("\x1b[?25h") > screen.told.rindex("\x1b[?25l")
