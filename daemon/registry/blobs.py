"""The bytes of a blob on their way: a transfer that breaks goes on where it was, or elsewhere."""

import logging
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack

from lighter.daemon.content.digest import Digest
from lighter.daemon.images.reference import Reference
from lighter.daemon.registry.answer import Answer
from lighter.daemon.registry.conversation import Conversation
from lighter.daemon.registry.endpoints import Endpoint
from lighter.daemon.registry.failures import Broken, WrongBytes
from lighter.daemon.types import Descriptor
from lighter.proto.errors import DataLoss, InvalidArgument, OutOfRange, Unavailable

log = logging.getLogger("lighter.registry")

MAX_BREAKS = 5
# A transfer that brings this much between two breaks is worth going on with.
PROGRESS_BYTES = 1 << 20

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII)


class Body:
    """`async for chunk in body`: the bytes in order, as they are stored, once.

    `offset` is where they begin: 0 when the registry cannot begin where it was asked to. `host` is
    where they come from, and changes when a broken transfer goes on at another one; `hosts` are all
    that bytes came from. Iterating raises Unavailable (it broke MAX_BREAKS times), WrongBytes
    (more than the descriptor says), or what a registry answers. The digest is the reader's to
    verify; if it is wrong, or on WrongBytes, `Remote.distrust(*body.hosts)`.
    """

    def __init__(
        self,
        conversation: Conversation,
        reference: Reference,
        descriptor: Descriptor,
        scopes: frozenset[str],
        sources: Callable[[], Sequence[Endpoint]],
    ) -> None:
        self.offset = 0
        self.host = ""
        self.hosts: list[str] = []
        self._talk = conversation
        self._descriptor = descriptor
        self._digest = Digest.parse(descriptor.digest)
        self._tail = f"{reference.repository}/blobs/{self._digest}"
        self._what = f"fetch {self._digest} of {reference}"
        self._scopes = scopes
        self._sources = sources
        self._open = AsyncExitStack()
        self._answer: Answer | None = None
        self._ranges = True  # as long as no host has shown that it has none
        self._broken: dict[str, int] = {}

    async def begin(self, offset: int) -> None:
        """Ask for the bytes from `offset` on. Raises as Remote says."""
        if not 0 <= offset <= self._descriptor.size:
            raise OutOfRange(
                f"{self._what}: it has {self._descriptor.size} bytes, none at {offset}"
            )
        self.offset = await self._ask(offset)

    async def close(self) -> None:
        await self._open.aclose()

    async def _ask(self, position: int) -> int:
        """Open an answer that begins at `position`, or at 0; returns which."""

        async def at(endpoint: Endpoint) -> int:
            await self._open.aclose()
            start = position if self._ranges else 0
            try:
                return await self._ask_one(endpoint, start)
            except _NoRangeError as err:
                log.debug("%s", err)
                self._ranges = False
                await self._open.aclose()
                return await self._ask_one(endpoint, 0)

        sources = sorted(self._sources(), key=lambda item: self._broken.get(item.host, 0) // 2)
        return await self._talk.first(sources, at)

    async def _ask_one(self, endpoint: Endpoint, start: int) -> int:
        size = self._descriptor.size
        if start == size:  # no Range can ask for nothing
            self._answer, self.host = None, endpoint.host
            return start
        answer = await self._open.enter_async_context(
            self._talk.ask(
                endpoint,
                "GET",
                endpoint.link(self._tail),
                self._what,
                self._scopes,
                expect=(200, 206, 416) if start else (200,),
                headers={"Range": f"bytes={start}-"} if start else None,
                follow=True,
            )
        )
        if answer.status == 206:
            self._check_range(answer, start, endpoint.host)
        elif answer.status == 416:
            raise _NoRangeError(f"{self._what} from {endpoint.host}: no range from {start}")
        else:
            start = 0
        if answer.length is not None and answer.length != size - start:
            raise DataLoss(
                f"{self._what} from {endpoint.host}: {answer.length} bytes come, "
                f"{size - start} are expected"
            )
        if answer.header("Content-Encoding").lower() not in ("", "identity"):
            raise InvalidArgument(
                f"{self._what} from {endpoint.host}: it comes encoded, which was not asked for"
            )
        self._answer, self.host = answer, endpoint.host
        return start

    def _check_range(self, answer: Answer, start: int, host: str) -> None:
        text = answer.header("Content-Range")
        found = _CONTENT_RANGE.fullmatch(text)
        size = self._descriptor.size
        if (
            not found
            or (int(found[1]), int(found[2])) != (start, size - 1)
            or found[3] not in ("*", str(size))
        ):
            raise _NoRangeError(
                f"{self._what} from {host}: asked from {start}, it gives another part"
            )

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = self._descriptor.size
        position = skip_to = self.offset
        breaks, since = 0, position
        while position < size or skip_to < size:
            assert self._answer is not None
            try:
                async for chunk in self._answer.chunks():
                    if self.host not in self.hosts:
                        self.hosts.append(self.host)
                    position += len(chunk)
                    if position > size:
                        raise WrongBytes(
                            f"{self._what} from {self.host}: more than its {size} bytes come"
                        )
                    fresh = position - skip_to
                    if fresh <= 0:
                        continue  # had before the transfer broke
                    skip_to = position
                    yield chunk if fresh >= len(chunk) else chunk[-fresh:]
                if position == size:
                    break
                raise Broken(
                    f"{self._what} from {self.host}: it ends after {position} of {size} bytes"
                )
            except Broken as err:
                if skip_to - since >= PROGRESS_BYTES:
                    breaks, since = 0, skip_to
                breaks += 1
                self._broken[self.host] = self._broken.get(self.host, 0) + 1
                if breaks > MAX_BREAKS:
                    raise Unavailable(
                        f"{err.message}; it broke {breaks} times, last at byte {skip_to} of {size}"
                    ) from err
                log.info("%s; going on from byte %d", err.message, skip_to)
            await self._talk.pause(breaks)
            position = await self._ask(skip_to)
            if position > skip_to:
                raise InvalidArgument(f"{self._what}: asked from {skip_to}, began at {position}")


class _NoRangeError(Exception):
    """This host does not serve a part of a blob."""
