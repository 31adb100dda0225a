"""A root directory of containerd's, as its own store keeps it (core/metadata/buckets.go).

    io.containerd.metadata.v1.bolt/meta.db                     v1/<namespace>/images/<name>/target …
    io.containerd.content.v1.content/blobs/sha256/<hex>        the content of all namespaces

Only read, never written. What it says of content is checked against the bytes by who takes it.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

from lighter.daemon.content.blobs import read_blob
from lighter.daemon.content.digest import Digest
from lighter.daemon.migrate.bolt import Bolt, Table
from lighter.daemon.types import Descriptor
from lighter.proto.errors import DataLoss, FailedPrecondition, LighterError, ResourceExhausted

DATABASE = "io.containerd.metadata.v1.bolt/meta.db"
BLOBS = "io.containerd.content.v1.content/blobs/sha256"
# Where content came from, which a push to the same registry makes use of.
SOURCE_LABEL = "containerd.io/distribution.source."


class Named(NamedTuple):
    """An image as containerd has it."""

    namespace: str
    name: str
    target: Descriptor
    labels: dict[str, str]


class Unreadable(NamedTuple):
    """A record of an image that says nothing which we could take, and why."""

    namespace: str
    name: str
    why: str


class ContainerdRoot:
    """`path` is what containerd's configuration calls root. Looks like `Documents`."""

    def __init__(self, path: str) -> None:
        self._dir = path
        if not os.path.isfile(f"{path}/{DATABASE}"):
            raise FailedPrecondition(f"read {path}: it is no root of containerd's (no {DATABASE})")
        self._bolt = Bolt.read(f"{path}/{DATABASE}")
        self._sources: dict[str, dict[str, dict[str, str]]] = {}

    def namespaces(self) -> list[str]:
        version = self._bolt.root.table(b"v1")
        return [_text(name) for name, _ in version.tables()] if version else []

    def images(self, namespace: str) -> Iterator[Named | Unreadable]:
        """Raises DataLoss where the database itself is damaged."""
        found = self._bolt.root.table(b"v1", namespace.encode(), b"images")
        for key, image in found.tables() if found else ():
            name = _text(key)
            try:
                yield Named(namespace, name, _target(image), dict(_values(image, b"labels")))
            except LighterError as err:
                yield Unreadable(namespace, name, err.message)

    def sources(self, namespace: str, digest: str) -> dict[str, str]:
        """Labels of content that say where it came from."""
        if namespace not in self._sources:
            blobs = self._bolt.root.table(b"v1", namespace.encode(), b"content", b"blob")
            self._sources[namespace] = {
                _text(key): {
                    label: value
                    for label, value in _values(blob, b"labels")
                    if label.startswith(SOURCE_LABEL)
                }
                for key, blob in (blobs.tables() if blobs else ())
            }
        return dict(self._sources[namespace].get(digest, {}))

    def path(self, digest: str) -> str:
        return f"{self._dir}/{BLOBS}/{Digest.parse(digest).hex}"

    # --- Documents

    def size(self, digest: str) -> int | None:
        try:
            return os.lstat(self.path(digest)).st_size
        except FileNotFoundError:
            return None

    async def read(self, digest: str, max_bytes: int) -> bytes:
        size = self.size(digest) or 0
        if size > max_bytes:
            raise ResourceExhausted(f"read content {digest}: {size} bytes, at most {max_bytes}")
        return read_blob(self.path(digest), digest, size)


def _target(image: Table) -> Descriptor:
    """Raises InvalidArgument, DataLoss."""
    target = image.table(b"target")
    found = dict(target.values()) if target else {}
    try:
        media_type, digest = (_text(found[name]) for name in (b"mediatype", b"digest"))
        size = _varint(found[b"size"])
    except (KeyError, ValueError) as err:
        raise DataLoss(f"read its target: {err!r}") from err
    return Descriptor(media_type, Digest.parse(digest), size, dict(_values(image, b"annotations")))


def _values(table: Table, name: bytes) -> Iterator[tuple[str, str]]:
    inner = table.table(name)
    for key, value in inner.values() if inner else ():
        yield _text(key), value.decode("utf-8", "replace")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")


def _varint(data: bytes) -> int:
    """encoding/binary.Varint of Go: seven bits in a byte, low ones first, zigzag."""
    value = 0
    for place, byte in enumerate(data[:10]):
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1)
    raise ValueError("a number without an end")
