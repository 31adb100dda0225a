"""How a long piece of work on images tells how far it is."""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from lighter.daemon.types import Descriptor

TELL_S = 0.1


@dataclass(frozen=True)
class Progress:
    """`status` is reading, importing, moved (a name, which stood for `digest` before), unpacking or
    done; of a transfer also resolving, resolved, and of one piece of content waiting, downloading,
    uploading, exists, done.

    Bytes are 0 where they are not known. `ref` is the image's name when it is known, `digest`
    what is worked on, `kind` what that is: index, manifest, config, layer, or "" for the image.
    """

    status: str
    ref: str = ""
    digest: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    kind: str = ""


Report = Callable[[Progress], None]


def unreported(_: Progress) -> None:
    """The Report of who does not care."""


class Board:
    """The pieces of one transfer: reports what has changed, ten times a second at most.

    To be used on the loop, as a context; leaving it reports what is left to say.
    """

    def __init__(self, report: Report, ref: str) -> None:
        self._report = report
        self._ref = ref
        self._pieces: dict[str, Progress] = {}
        self._changed: dict[str, None] = {}
        self._due: asyncio.TimerHandle | None = None
        self._told_at = 0.0

    def say(self, status: str, digest: str = "") -> None:
        """Something about the image as a whole, at once."""
        self._tell()
        self._report(Progress(status, self._ref, digest))

    def pass_on(self, progress: Progress) -> None:
        """Progress of an unpack, as it comes; a Report."""
        self._report(progress)

    def piece(
        self, kind: str, digest: str, status: str, done_bytes: int = 0, total_bytes: int = 0
    ) -> None:
        """How far one piece of content is."""
        now = Progress(status, self._ref, digest, done_bytes, total_bytes, kind)
        if self._pieces.get(digest) == now:
            return
        self._pieces[digest] = now
        self._changed[digest] = None
        if self._due is None:
            wait = max(0.0, self._told_at + TELL_S - time.monotonic())
            self._due = asyncio.get_running_loop().call_later(wait, self._tell)

    def _tell(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
        self._told_at = time.monotonic()
        changed, self._changed = self._changed, {}
        for digest in changed:
            self._report(self._pieces[digest])

    def __enter__(self) -> "Board":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tell()


class Scaled:
    """Progress of single layers as progress of the whole image, in compressed bytes."""

    def __init__(self, ref: str, layers: Iterable[tuple[Descriptor, str]], report: Report) -> None:
        self._ref = ref
        self._report = report
        self._total = sum(layer.size for layer, _ in layers)
        self._whole = 0
        self._under_way: dict[str, int] = {}

    def of(self, layer: Descriptor) -> Callable[[dict[str, Any]], None]:
        """A progress callback for the worker that applies `layer`."""

        def progress(item: dict[str, Any]) -> None:
            self._under_way[layer.digest] = min(int(item.get("done_bytes", 0)), layer.size)
            self._tell(layer)

        return progress

    def layer_done(self, layer: Descriptor) -> None:
        self._under_way.pop(layer.digest, None)
        self._whole += layer.size
        self._tell(layer)

    def _tell(self, layer: Descriptor) -> None:
        done_bytes = min(self._total, self._whole + sum(self._under_way.values()))
        self._report(Progress("unpacking", self._ref, layer.digest, done_bytes, self._total))
