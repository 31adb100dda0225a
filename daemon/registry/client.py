"""A repository of one registry, as pull and push see it (OCI distribution-spec 1.1).

Bytes come from whichever host has them: the mirrors in order, then the registry itself. Only
digests that were computed here are believed.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any

from lighter.daemon.content.digest import Digest
from lighter.daemon.images.documents import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    INDEXES,
    MANIFESTS,
    OCI_INDEX,
    OCI_MANIFEST,
    load,
)
from lighter.daemon.images.reference import Reference
from lighter.daemon.registry.answer import Answer
from lighter.daemon.registry.auth import scopes_of
from lighter.daemon.registry.blobs import Body
from lighter.daemon.registry.conversation import Conversation, content_type
from lighter.daemon.registry.endpoints import PULL, RESOLVE, Endpoint
from lighter.daemon.registry.push import Pusher, Source
from lighter.daemon.types import Descriptor
from lighter.proto.errors import (
    DataLoss,
    InvalidArgument,
    LighterError,
    ResourceExhausted,
    Unimplemented,
)

log = logging.getLogger("lighter.registry")

MAX_MANIFEST_BYTES = 4 << 20

DOCUMENTS = INDEXES | MANIFESTS
ACCEPT = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST))
# What a registry says of a manifest whose type it does not know.
_SAYS_NOTHING = frozenset(
    {"", "application/json", "application/octet-stream", "text/plain", "binary/octet-stream"}
)
_HEAD_MAY_FAIL = frozenset({400, 403, 404, 405, 406, 501})
SCHEMA_1 = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)


class Remote:
    """To be entered: connections and tokens are shared by all calls and end with it.

    Errors name reference, digest and host, and hold no secret: NotFound, PermissionDenied (401,
    403, a target that is refused), Unavailable (network, TLS, 5xx, too many tries),
    ResourceExhausted (429, 413, a cap of ours), DataLoss (bytes of another digest or size),
    Unimplemented (Docker schema 1), InvalidArgument (an answer that is none of the API).
    """

    def __init__(
        self, reference: Reference, converse: Callable[[], Awaitable[Conversation]]
    ) -> None:
        self.reference = reference
        self._converse = converse
        self._conversation: Conversation | None = None
        self._distrusted: set[str] = set()
        self._pull_scopes = scopes_of(reference.repository, ("pull",))
        self._kept: tuple[Descriptor, bytes] | None = None  # a document that resolving had to read

    @property
    def _talk(self) -> Conversation:
        assert self._conversation is not None, "enter it before it is used"
        return self._conversation

    async def __aenter__(self) -> "Remote":
        self._conversation = await self._converse()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._talk.close()

    async def resolve(self) -> Descriptor:
        """What the reference's digest, or else tag, names now: an index or a manifest.

        A digest that a registry tells is its claim until `document` has read the bytes.
        """
        named = self.reference.digest or self.reference.tag

        async def at(endpoint: Endpoint) -> Descriptor:
            found = await self._ask_head(endpoint, named)
            return found or await self._ask_whole(endpoint, named)

        return await self._talk.first(self._talk.able(RESOLVE), at)

    async def _ask_head(self, endpoint: Endpoint, named: str) -> Descriptor | None:
        """By HEAD, which registries don't count as a pull; None where it does not tell all."""
        what = f"resolve {self.reference}"
        link = endpoint.link(f"{self.reference.repository}/manifests/{named}")
        try:
            async with self._talk.ask(
                endpoint,
                "HEAD",
                link,
                what,
                self._pull_scopes,
                expect=(200,),
                headers={"Accept": ACCEPT},
                follow=True,
            ) as answer:
                media_type, size = content_type(answer), answer.length
                claimed = answer.header("Docker-Content-Digest")
        except LighterError as err:
            if err.details.get("status") not in _HEAD_MAY_FAIL and not self._talk.gives_up(err):
                raise
            log.debug("%s; asked again with GET", err.message)
            return None  # GET's answer has a body that says what is wrong
        self._refuse_schema_1(media_type, endpoint)
        if media_type not in DOCUMENTS or not size:
            return None
        try:
            digest = Digest.parse(claimed)
        except InvalidArgument:
            return None
        self._check_asked(digest, endpoint)
        if size > MAX_MANIFEST_BYTES:
            raise ResourceExhausted(
                f"{what} from {endpoint.host}: {digest} has {size} bytes, at most "
                f"{MAX_MANIFEST_BYTES} are read"
            )
        return Descriptor(media_type, digest, size)

    async def _ask_whole(self, endpoint: Endpoint, named: str) -> Descriptor:
        what = f"resolve {self.reference}"
        link = endpoint.link(f"{self.reference.repository}/manifests/{named}")
        async with self._talk.ask(
            endpoint,
            "GET",
            link,
            what,
            self._pull_scopes,
            expect=(200,),
            headers={"Accept": ACCEPT},
            follow=True,
        ) as answer:
            media_type = content_type(answer)
            self._refuse_schema_1(media_type, endpoint)
            data = await answer.read(MAX_MANIFEST_BYTES)
        if media_type in _SAYS_NOTHING:
            media_type = self._type_inside(data, endpoint)
        if media_type not in DOCUMENTS:
            raise InvalidArgument(
                f"{what} from {endpoint.host}: {self._clean(media_type)!r} is neither an image "
                "manifest nor an index"
            )
        digest = Digest.of(data)
        self._check_asked(digest, endpoint)
        found = Descriptor(media_type, digest, len(data))
        self._kept = (found, data)
        return found

    def _check_asked(self, digest: str, endpoint: Endpoint) -> None:
        asked = self.reference.digest
        if asked and asked != digest:
            raise DataLoss(
                f"resolve {self.reference} from {endpoint.host}: it has {digest} under that digest"
            )

    def _type_inside(self, data: bytes, endpoint: Endpoint) -> str:
        """The media type of a document that came without one."""
        document = load(data, f"manifest of {self.reference} from {endpoint.host}")
        if document.get("schemaVersion") == 1:
            self._refuse_schema_1(min(SCHEMA_1), endpoint)
        inside = document.get("mediaType")
        if isinstance(inside, str):
            return inside
        return OCI_INDEX if "manifests" in document else OCI_MANIFEST

    def _refuse_schema_1(self, media_type: str, endpoint: Endpoint) -> None:
        if media_type in SCHEMA_1:
            raise Unimplemented(
                f"resolve {self.reference} from {endpoint.host}: it is a Docker schema 1 image, a "
                "format given up in 2017; push it again with a current tool"
            )

    async def document(self, descriptor: Descriptor, max_bytes: int = MAX_MANIFEST_BYTES) -> bytes:
        """All bytes of a manifest, index or config, of the descriptor's digest and size."""
        digest = Digest.parse(descriptor.digest)
        if descriptor.size > max_bytes:
            raise ResourceExhausted(
                f"fetch {digest} of {self.reference}: it has {descriptor.size} bytes, at most "
                f"{max_bytes} are read"
            )
        if self._kept and self._kept[0].digest == digest:
            kept, data = self._kept
            self._check_document(descriptor, data, kept.media_type, "the registry")
            return data

        async def at(endpoint: Endpoint) -> bytes:
            return await self._fetch_document(endpoint, descriptor, digest)

        return await self._talk.first(self._sources(), at)

    async def _fetch_document(
        self, endpoint: Endpoint, descriptor: Descriptor, digest: Digest
    ) -> bytes:
        is_manifest = descriptor.media_type in DOCUMENTS
        kind = "manifests" if is_manifest else "blobs"
        accept = f"{descriptor.media_type}, {ACCEPT}" if is_manifest else "*/*"
        async with self._talk.ask(
            endpoint,
            "GET",
            endpoint.link(f"{self.reference.repository}/{kind}/{digest}"),
            f"fetch {digest} of {self.reference}",
            self._pull_scopes,
            expect=(200,),
            headers={"Accept": accept},
            follow=True,
        ) as answer:
            media_type = content_type(answer) if is_manifest else ""
            self._check_size(descriptor, answer, endpoint.host)
            data = await answer.read(descriptor.size + 1)
        self._check_document(descriptor, data, media_type, endpoint.host)
        return data

    def _check_size(self, descriptor: Descriptor, answer: Answer, host: str) -> None:
        if answer.length is not None and answer.length != descriptor.size:
            raise DataLoss(
                f"fetch {descriptor.digest} of {self.reference} from {host}: {answer.length} bytes "
                f"come, {descriptor.size} are expected"
            )

    def _check_document(
        self, descriptor: Descriptor, data: bytes, media_type: str, host: str
    ) -> None:
        what = f"fetch {descriptor.digest} of {self.reference} from {host}"
        if len(data) != descriptor.size:
            raise DataLoss(f"{what}: {len(data)} bytes came, {descriptor.size} are expected")
        found = Digest.of(data)
        if found != descriptor.digest:
            raise DataLoss(f"{what}: the bytes have the digest {found}")
        if media_type in DOCUMENTS and media_type != descriptor.media_type:
            # Else two clients could read one digest as two things (SEC-20).
            raise InvalidArgument(
                f"{what}: it came as {media_type} and is named as {descriptor.media_type}"
            )

    @asynccontextmanager
    async def blob(self, descriptor: Descriptor, offset: int = 0) -> AsyncIterator[Body]:
        """The bytes of a blob from `offset` on."""
        body = Body(self._talk, self.reference, descriptor, self._pull_scopes, self._sources)
        try:
            await body.begin(offset)
            yield body
        finally:
            await body.close()

    def distrust(self, *hosts: str) -> bool:
        """Stop using these hosts, whose bytes together had the wrong digest.

        If there are several, keep the last in priority order, the registry rather than a mirror of
        it: not all need be at fault. False when no host is left.
        """
        order = [item.host for item in self._talk.able(PULL)]
        wrong = sorted(hosts, key=order.index)
        wrong = wrong[:-1] or wrong
        self._distrusted.update(wrong)
        log.warning(
            "%s: bytes from %s were wrong; %s not asked again",
            self.reference,
            " and ".join(hosts),
            f"{' and '.join(wrong)} {'is' if len(wrong) == 1 else 'are'}",
        )
        return bool(self._sources())

    def _sources(self) -> list[Endpoint]:
        return [item for item in self._talk.able(PULL) if item.host not in self._distrusted]

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
        return await self._pusher().blob(descriptor, source, mount_from, progress)

    async def push_document(self, descriptor: Descriptor, data: bytes, tag: str = "") -> None:
        """Store a manifest or index under its digest, and as `tag`. Its blobs must be there."""
        await self._pusher().document(descriptor, data, tag)

    def _pusher(self) -> Pusher:
        return Pusher(self._talk, self.reference)

    def _clean(self, text: Any) -> str:
        return self._talk.redactor.clean(str(text))
