"""Transfers as they go: bars on a terminal, a line for each finished piece elsewhere."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol, TextIO

from lighter.ctl.output import size_text, visible

_MOVING = ("downloading", "uploading")
_OVER = ("done", "exists")
MIN_COLUMNS = 80


class Display(Protocol):
    """Takes the items of a transfer in their order, then its result."""

    def show(self, item: dict[str, Any]) -> None: ...

    def finish(self, result: dict[str, Any]) -> None: ...


@contextlib.contextmanager
def shown(*, to_stderr: bool = False) -> Iterator[Display]:
    """The display that fits the stream: standard output, or error where output is another's."""
    stream = sys.stderr if to_stderr else sys.stdout
    if stream is not None and _has_room(stream):
        from lighter.ctl.bars import Bars

        with Bars(stream) as bars:
            yield bars
    else:
        yield Lines(stream)


def _has_room(stream: TextIO) -> bool:
    """Whether it is a terminal in which bars fit."""
    try:
        return stream.isatty() and os.get_terminal_size(stream.fileno()).columns >= MIN_COLUMNS
    except (OSError, ValueError):
        return False


class Summary:
    """What has moved in all, for the last line."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._moved: dict[str, int] = {}
        self._first: dict[str, int] = {}

    def note(self, item: dict[str, Any]) -> None:
        """Bytes that were there before the transfer are not counted."""
        digest = item["digest"]
        if item["status"] in _MOVING:
            first = self._first.setdefault(digest, item["done_bytes"])
            self._moved[digest] = max(0, item["done_bytes"] - first)
        elif item["kind"] and item["status"] == "done":
            self._moved[digest] = item["done_bytes"] - self._first.get(digest, 0)

    def text(self) -> str:
        """As ctr has it: elapsed, total, rate."""
        elapsed = time.monotonic() - self._begun
        total = sum(self._moved.values())
        rate = size_text(int(total / elapsed)) if elapsed > 0 else "0 B"
        return f"elapsed: {elapsed:.1f} s  total: {size_text(total)} ({rate}/s)"


def times_text(result: dict[str, Any]) -> str:
    """Where a pull's time went; "" for what has no such times."""
    if "download_s" not in result:
        return ""
    text = f"download: {result['download_s']:.1f} s"
    return f"{text}  unpack: {result['unpack_s']:.1f} s" if result["unpack_s"] else text


def piece_name(item: dict[str, Any]) -> str:
    """As ctr writes it: layer-sha256:…"""
    return f"{item['kind']}-{item['digest']}"


class Lines:
    """One line for what is over."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._summary = Summary()
        self._over: set[tuple[str, str]] = set()
        self._ref = ""

    def show(self, item: dict[str, Any]) -> None:
        self._summary.note(item)
        status, digest = item["status"], item["digest"]
        self._ref = item["ref"] or self._ref
        if not item["kind"]:
            if status == "resolved":
                self._print(f"{item['ref']}: resolved {digest}")
            elif status == "unpacking" and item["done_bytes"] >= item["total_bytes"]:
                self._once("unpacked", digest, f"unpacked {digest}")
        elif status in _OVER:
            size = size_text(item["total_bytes"])
            self._once(item["kind"], digest, f"{piece_name(item)}: {status} {size}")

    def _once(self, kind: str, digest: str, text: str) -> None:
        if (kind, digest) not in self._over:
            self._over.add((kind, digest))
            self._print(text)

    def finish(self, result: dict[str, Any]) -> None:
        self._print(self._summary.text())
        if times := times_text(result):
            self._print(times)
        self._print(f"{self._ref}: done {result['digest']}")

    def _print(self, text: str) -> None:
        if self._stream is not None:
            print(visible(text), file=self._stream, flush=True)
