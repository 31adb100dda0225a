"""Reserved labels that an image's own documents hold, found whatever way a client reads those.

A client of containerd copies all labels of an image's configuration to the container that it
records, so what steers the manager may come from whoever made the image (SEC-44). Go's decoder
takes a key in any case, the last of several, and half characters: so nothing is interpreted here,
and every pair of texts in every document below the image counts.
"""

import asyncio
import json
import os
import re
from dataclasses import dataclass, field
from typing import Any

from lighter.daemon import jsonbounds
from lighter.daemon.content.digest import Digest
from lighter.daemon.content.store import ContentStore
from lighter.daemon.images.documents import MAX_DOCUMENT_BYTES
from lighter.daemon.images.graph import MAX_NODES, MAX_TOTAL_BYTES
from lighter.daemon.images.service import ImageService
from lighter.daemon.oci.config import RESERVED_LABELS
from lighter.proto.errors import DataLoss, InvalidArgument, NotFound, ResourceExhausted

_LOOK_BYTES = 4096
# What is no text to Go becomes one of its replacement characters, or several.
_NO_TEXT = re.compile("[\ud800-\udfff\ufffd]+")


@dataclass
class Imposed:
    """The reserved labels of one image; `unreadable`: one of its documents could not be read."""

    labels: set[tuple[str, str]] = field(default_factory=set)
    unreadable: bool = False

    def has(self, key: str, value: str) -> bool:
        """Whether a label may come from the image. What could not be read may hold any."""
        if not key.startswith(RESERVED_LABELS):
            return False
        return self.unreadable or (key, _text(value)) in self.labels


class ImposedLabels:
    """Reads what is below an image's name; platforms that are not here name no label."""

    def __init__(self, images: ImageService, content: ContentStore) -> None:
        self._images = images
        self._content = content

    async def of(self, namespace: str, image: str) -> Imposed:
        """The reserved labels of an image; none when the image is not here, for then nobody could
        copy from it.
        """
        found = Imposed()
        try:
            waiting = [self._images.record(namespace, image).target.digest]
        except NotFound:
            return found
        seen: set[str] = set()
        read_bytes = 0
        while waiting:
            digest = waiting.pop()
            if digest in seen:
                continue
            seen.add(digest)
            if len(seen) > MAX_NODES:
                found.unreadable = True
                return found
            try:
                data = await self._document(namespace, digest)
                pairs = await asyncio.to_thread(_telling, data)
            except NotFound:
                continue
            except (DataLoss, ResourceExhausted, ValueError, RecursionError):
                found.unreadable = True
                return found
            read_bytes += len(data)
            if read_bytes > MAX_TOTAL_BYTES:
                found.unreadable = True
                return found
            for key, value in pairs:
                if key.startswith(RESERVED_LABELS):
                    found.labels.add((key, _text(value)))
                else:
                    waiting.append(value)
        return found

    async def _document(self, namespace: str, digest: str) -> bytes:
        """Raises NotFound for what is not here or is no document, as a layer."""
        size = self._content.info(namespace, digest).size
        opened = self._content.open_known(digest, size)
        try:
            beginning = os.pread(opened, _LOOK_BYTES, 0).lstrip(b" \t\r\n")
        finally:
            os.close(opened)
        if beginning and not beginning.startswith(b"{"):
            raise NotFound(f"read content {digest}: it is no document")
        return await self._content.read_document(namespace, digest, MAX_DOCUMENT_BYTES)


def _telling(data: bytes) -> list[tuple[str, str]]:
    """The pairs with a reserved key, or with the digest of another document. Raises ValueError."""
    found: list[tuple[str, str]] = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        found.extend(
            (key, value) for key, value in pairs if isinstance(value, str) and _tells(key, value)
        )

    if data.count(b"[") > jsonbounds.MAX_VALUES:  # of lists alone no other thread gets a turn
        raise ValueError("it has too many lists")
    json.loads(data.decode("utf-8", "replace"), object_pairs_hook=note, parse_int=len)
    return found


def _tells(key: str, value: str) -> bool:
    if key.startswith(RESERVED_LABELS):
        return True
    return key.casefold() == "digest" and _is_digest(value)


def _text(value: str) -> str:
    return _NO_TEXT.sub("\ufffd", value)


def _is_digest(value: str) -> bool:
    try:
        Digest.parse(value)
    except InvalidArgument:
        return False
    return True
