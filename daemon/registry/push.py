"""Storing blobs, manifests and indexes in a registry (OCI distribution-spec 1.1, "Push")."""

import logging
from collections.abc import AsyncIterator, Callable

from lighter.daemon.content.digest import Digest
from lighter.daemon.images.reference import Reference
from lighter.daemon.registry.addresses import Link
from lighter.daemon.registry.auth import scopes_of
from lighter.daemon.registry.conversation import Conversation
from lighter.daemon.registry.endpoints import PUSH, Endpoint
from lighter.daemon.registry.failures import Broken, Closed
from lighter.daemon.types import Descriptor
from lighter.proto.errors import DataLoss, InvalidArgument, LighterError, NotFound

log = logging.getLogger("lighter.registry")

Source = Callable[[], AsyncIterator[bytes]]
"""Opens the bytes of a blob anew from the first one: an upload that breaks is begun again."""


class Pusher:
    """Into one repository, at the first of the hosts that may be pushed to, as containerd's."""

    def __init__(self, conversation: Conversation, reference: Reference) -> None:
        self._talk = conversation
        self._reference = reference
        self._repository = reference.repository

    @property
    def _endpoint(self) -> Endpoint:
        return self._talk.able(PUSH)[0]

    async def blob(
        self,
        descriptor: Descriptor,
        source: Source,
        mount_from: str,
        progress: Callable[[int], None],
    ) -> bool:
        """See Remote.push_blob."""
        digest = Digest.parse(descriptor.digest)
        endpoint = self._endpoint
        if await self._talk.retried(lambda: self._has_blob(endpoint, digest)):
            return False
        mount = mount_from if mount_from != self._repository else ""
        asks_first = False

        async def upload() -> bool:
            nonlocal asks_first
            try:
                return await self._upload(
                    endpoint, descriptor, digest, source, mount, progress, asks_first
                )
            except Broken as err:
                # A registry that refuses an upload while it comes, and closes, may be heard or not:
                # what it said is lost when the next write fails. So it is asked before a byte of
                # the body is sent; should it not know how to answer that, not the time after.
                asks_first = isinstance(err, Closed) and not asks_first
                raise

        return await self._talk.retried(upload)

    async def _has_blob(self, endpoint: Endpoint, digest: Digest) -> bool:
        try:
            async with self._talk.ask(
                endpoint,
                "HEAD",
                endpoint.link(f"{self._repository}/blobs/{digest}"),
                self._what(digest, "look for"),
                self._scopes(),
                expect=(200,),
                follow=True,
            ):
                return True
        except NotFound:
            return False

    async def _upload(
        self,
        endpoint: Endpoint,
        descriptor: Descriptor,
        digest: Digest,
        source: Source,
        mount_from: str,
        progress: Callable[[int], None],
        asks_first: bool,
    ) -> bool:
        """A session of its own each time: what a broken one has taken in is not to be relied on."""
        what = self._what(digest, "push")
        begun = await self._begin(endpoint, digest, mount_from, what)
        if begun is None:
            return False
        session, scopes = begun
        sign = "&" if "?" in session.url else "?"
        link = Link(f"{session.url}{sign}digest={digest}", session.origin)
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(descriptor.size),
        }
        if asks_first:
            headers["Expect"] = "100-continue"

        def data() -> AsyncIterator[bytes]:
            return _measured(source, descriptor, what, progress)

        try:
            async with self._talk.ask(
                endpoint,
                "PUT",
                link,
                what,
                scopes,
                expect=(201, 202, 204),
                headers=headers,
                data=data if descriptor.size else b"",
            ) as answer:
                self._check_stored(answer.header("Docker-Content-Digest"), digest, what)
        except NotFound as err:
            # The registry has forgotten the session: it was restarted, or took it for abandoned.
            raise Broken(err.message) from err
        return True

    async def _begin(
        self, endpoint: Endpoint, digest: Digest, mount_from: str, what: str
    ) -> tuple[Link, frozenset[str]] | None:
        """Where to upload to, and for which scopes the registry or its realm has let us; None when
        it took the blob from the other repository.
        """
        scopes = self._scopes(mount_from)
        tail = f"{self._repository}/blobs/uploads/"
        if mount_from:
            # The caller has looked whether it is a repository's name: it needs no quoting.
            tail += f"?mount={digest}&from={mount_from}"
        try:
            async with self._talk.ask(
                endpoint,
                "POST",
                endpoint.link(tail),
                what,
                scopes,
                expect=(201, 202),
                headers={"Content-Length": "0"},
                data=b"",
            ) as answer:
                if answer.status == 201:
                    return None
                session = self._talk.transport.led_to(
                    answer, answer.header("Location"), f"{what}: use upload session"
                )
                return session, scopes
        except LighterError as err:
            if not mount_from:
                raise
            log.info("%s; it is uploaded instead of mounted", err.message)
        return await self._begin(endpoint, digest, "", what)

    async def document(self, descriptor: Descriptor, data: bytes, tag: str) -> None:
        """See Remote.push_document."""
        digest = Digest.of(data)
        if digest != descriptor.digest or len(data) != descriptor.size:
            raise DataLoss(
                f"push {descriptor.digest} to {self._reference}: the bytes have the digest {digest}"
            )
        if tag:
            Reference.parse(f"{self._reference.name}:{tag}")
        endpoint = self._endpoint
        await self._talk.retried(lambda: self._put(endpoint, descriptor, digest, data, tag))

    async def _put(
        self, endpoint: Endpoint, descriptor: Descriptor, digest: Digest, data: bytes, tag: str
    ) -> None:
        what = self._what(digest, "push")
        async with self._talk.ask(
            endpoint,
            "PUT",
            endpoint.link(f"{self._repository}/manifests/{tag or digest}"),
            what,
            self._scopes(),
            expect=(200, 201, 202),
            headers={"Content-Type": descriptor.media_type},
            data=data,
        ) as answer:
            self._check_stored(answer.header("Docker-Content-Digest"), digest, what)

    def _check_stored(self, said: str, digest: Digest, what: str) -> None:
        if said and said != digest:
            raise DataLoss(f"{what}: the registry has stored {self._talk.redactor.clean(said)}")

    def _scopes(self, mount_from: str = "") -> frozenset[str]:
        return scopes_of(self._repository, ("pull", "push"), mount_from)

    def _what(self, digest: Digest, verb: str) -> str:
        return f"{verb} {digest} of {self._reference}"


async def _measured(
    source: Source, descriptor: Descriptor, what: str, progress: Callable[[int], None]
) -> AsyncIterator[bytes]:
    """The chunks of a source, of which there must be exactly as many bytes as are announced."""
    sent = 0
    progress(0)
    async for chunk in source():
        sent += len(chunk)
        if sent > descriptor.size:
            break
        yield chunk
        progress(sent)
    if sent != descriptor.size:
        raise InvalidArgument(
            f"{what}: its content has not the {descriptor.size} bytes of its descriptor"
        )
