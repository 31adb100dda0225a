"""How far a transfer is, as containerd's clients draw it: a tree of named pieces.

The root is the image's name; a piece is `<kind>-<digest>` (containerd's MakeRefKey) and names the
documents above it, which content knows by its labels. An event without a name is the line below
the tree.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from lighter.daemon.content.digest import Digest
from lighter.daemon.content.store import ContentStore
from lighter.daemon.grpc import anys
from lighter.daemon.grpc.pb import transfer_types_pb2 as pb
from lighter.daemon.grpc.pb.types_pb2 import Descriptor
from lighter.daemon.grpc.streams import Stream
from lighter.daemon.images.progress import Progress
from lighter.proto.errors import NotFound, Unavailable

FLUSH_S = 5.0
_REFERENCES = "containerd.io/gc.ref.content"
_EVENTS = {"exists": "already exists", "done": "complete"}


class Telling:
    """Tells one stream. Of each piece only the last word waits for a client that looks away."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._waiting: dict[str, pb.Progress] = {}
        self._news = asyncio.Event()
        self._is_over = False
        self._sending = asyncio.ensure_future(self._send())

    def tell(self, progress: pb.Progress) -> None:
        key = progress.name or f" {progress.event}"
        self._waiting.pop(key, None)  # the new word stands where it was said
        self._waiting[key] = progress
        self._news.set()

    async def close(self) -> None:
        """Say what is left, to a client that listens."""
        self._is_over = True
        self._news.set()
        try:
            async with asyncio.timeout(FLUSH_S):
                await self._sending
        except TimeoutError:
            pass  # it does not read: it is not waited for
        finally:
            self._sending.cancel()

    async def _send(self) -> None:
        with suppress(Unavailable):
            while not self._is_over or self._waiting:
                await self._news.wait()
                self._news.clear()
                while self._waiting:
                    first = next(iter(self._waiting))
                    await self._stream.send(anys.pack(self._waiting.pop(first)))


class Tree:
    """Turns reports of a pull or push into the tree's pieces. `root` is the image's name."""

    def __init__(
        self,
        content: ContentStore,
        namespace: str,
        root: str,
        tell: Callable[[pb.Progress], None],
    ) -> None:
        self._content = content
        self._namespace = namespace
        self._root = root
        self._tell = tell
        self._above: dict[str, list[str]] = {}

    def line(self, event: str) -> None:
        """The line below."""
        self._tell(pb.Progress(event=event))

    def image(self, event: str, name: str, target: Descriptor) -> None:
        """Something about an image as a whole."""
        self._tell(pb.Progress(event=event, name=name, desc=target))

    def report(self, progress: Progress) -> None:
        """A Report: what it says of pieces, and that layers are unpacked."""
        if progress.status == "unpacking":
            self.line(f"unpacking {progress.ref}")
        if not progress.kind:
            return
        digest, kind = progress.digest, progress.kind
        name = f"{'unknown' if kind == 'content' else kind}-{digest}"
        if kind in ("index", "manifest") and progress.status != "waiting":
            self._learn(name, digest)
        self._tell(
            pb.Progress(
                event=_EVENTS.get(progress.status, progress.status),
                name=name,
                parents=self._above.get(digest, [self._root]),
                progress=progress.done_bytes,
                total=progress.total_bytes,
                desc=Descriptor(digest=digest, size=progress.total_bytes),
            )
        )

    def _learn(self, name: str, digest: str) -> None:
        """What is below a document, once it is content."""
        with suppress(NotFound):
            labels = self._content.info(self._namespace, Digest.parse(digest)).labels
            for label, child in labels.items():
                if label.startswith(_REFERENCES) and name not in self._above.get(child, ()):
                    self._above.setdefault(child, []).append(name)
