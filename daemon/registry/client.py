"""A repository of one registry, as pull and push see it (OCI distribution-spec 1.1).

Bytes come from whichever host has them: the mirrors in order, then the registry itself. Only
digests that were computed here are believed.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Protocol

from lighter.daemon.images.reference import Reference
from lighter.daemon.types import Descriptor

MAX_MANIFEST_BYTES = 4 << 20

Source = Callable[[], AsyncIterator[bytes]]
"""Opens the bytes of a blob anew from the first one: an upload that breaks is begun again."""


class Body(Protocol):
    """Bytes of a blob on their way, in order, as they are stored: `async for chunk in body`.

    `offset` is where they begin: 0 when the registry cannot begin where it was asked to. `host` is
    where they come from, and changes when a broken transfer goes on at another one. A transfer that
    breaks goes on by itself a few times; iterating raises Unavailable (it broke too often),
    DataLoss (more or fewer bytes than the descriptor says) or what the registry answers.
    The digest is the reader's to verify; if it is wrong, `Remote.distrust(body.host)`.
    """

    offset: int
    host: str

    def __aiter__(self) -> AsyncIterator[bytes]: ...


class Remote(Protocol):
    """To be entered: connections and tokens are shared by all calls and end with it.

    Errors name reference, digest and host, and hold no secret: NotFound, PermissionDenied (401,
    403), Unavailable (network, 5xx, too many tries), ResourceExhausted (429, a cap of ours),
    DataLoss (bytes that have another digest or size), Unimplemented (Docker schema 1),
    InvalidArgument (an answer that is no distribution API, a target that is refused).
    """

    reference: Reference

    async def __aenter__(self) -> "Remote": ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    async def resolve(self) -> Descriptor:
        """What the reference's tag, or digest, names now. Its digest is a claim until read."""

    async def document(self, descriptor: Descriptor, max_bytes: int = MAX_MANIFEST_BYTES) -> bytes:
        """All bytes of a manifest, index or config, of the descriptor's digest and size."""

    def blob(self, descriptor: Descriptor, offset: int = 0) -> AbstractAsyncContextManager[Body]:
        """The bytes of a blob from `offset` on."""

    def distrust(self, host: str) -> bool:
        """Ask `host` for no blob any more, since its bytes were wrong. False: no host is left."""

    async def push_blob(
        self,
        descriptor: Descriptor,
        source: Source,
        mount_from: str = "",
        progress: Callable[[int], None] = lambda sent_bytes: None,
    ) -> bool:
        """Have the registry hold a blob; False when it did already, or took it from `mount_from`.

        `mount_from`: a repository of the same registry that has it. `progress` gets the bytes sent
        so far; they begin at 0 again when the upload does.
        """

    async def push_document(self, descriptor: Descriptor, data: bytes, tag: str = "") -> None:
        """Store a manifest or index under its digest, and as `tag`. Its blobs must be there."""
