"""What all work with one registry goes through: its hosts, who we are there, and tries again."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from lighter.daemon.registry.addresses import Link
from lighter.daemon.registry.answer import Answer
from lighter.daemon.registry.auth import Authorizer
from lighter.daemon.registry.endpoints import Endpoint
from lighter.daemon.registry.failures import from_answer
from lighter.daemon.registry.redact import Redactor
from lighter.daemon.registry.retry import Backoff, retried
from lighter.daemon.registry.transport import Transport
from lighter.daemon.registry.upload import Upload
from lighter.proto.errors import (
    FailedPrecondition,
    LighterError,
    NotFound,
    Unavailable,
    from_wire,
)

log = logging.getLogger("lighter.registry")

T = TypeVar("T")

# Without a credential, with a token, and with a new one when that has expired.
_MAX_ASKED = 3


class Conversation:
    """Requests to the hosts of one registry, in order. To be closed."""

    def __init__(
        self,
        name: str,
        endpoints: Sequence[Endpoint],
        transport: Transport,
        redactor: Redactor,
        backoff: Backoff,
        *,
        owns_transport: bool = True,
    ) -> None:
        self._owns_transport = owns_transport
        self.name = name  # what errors call the registry
        self.endpoints = tuple(endpoints)
        self.transport = transport
        self.redactor = redactor
        self._backoff = backoff
        self._authorizer = Authorizer(transport, redactor)
        self._nobody = Authorizer(transport, redactor)  # at hosts that a redirect leads to
        for endpoint in endpoints:
            self._authorizer.learn(endpoint.credential)

    async def close(self) -> None:
        if self._owns_transport:
            await self.transport.close()

    def only(self, endpoint: Endpoint) -> "Conversation":
        """The same with one host alone and no second try."""
        return Conversation(
            self.name,
            (endpoint,),
            self.transport,
            self.redactor,
            Backoff(tries=1),
            owns_transport=False,
        )

    def able(self, capability: str) -> list[Endpoint]:
        """The hosts that may be asked for this. Raises FailedPrecondition for none."""
        found = [item for item in self.endpoints if capability in item.capabilities]
        if not found:
            raise FailedPrecondition(
                f"use registry {self.name}: no host of {self.endpoints[-1].source} may {capability}"
            )
        return found

    @asynccontextmanager
    async def ask(
        self,
        endpoint: Endpoint,
        method: str,
        link: Link,
        what: str,
        scopes: frozenset[str],
        *,
        expect: Sequence[int],
        headers: Mapping[str, str] | None = None,
        data: bytes | Upload | None = None,
        follow: bool = False,
    ) -> AsyncIterator[Answer]:
        """One request, with whatever the endpoint asks of us for it, and its answer.

        Raises what an answer means whose status is not in `expect`.
        """
        what = f"{what} from {endpoint.host}"
        for number in range(1, _MAX_ASKED + 1):
            sent = ""
            if link.origin == endpoint.origin:
                sent = await self._authorizer.authorization(endpoint, scopes, what)
            async with self.transport.ask(
                endpoint,
                method,
                link,
                what,
                headers=headers,
                authorization=sent,
                data=data,
                follow=follow,
            ) as answer:
                if answer.status in expect:
                    yield answer
                    return
                guest = await self._guest(endpoint, answer, scopes, what) if follow else None
                if guest is None and (
                    answer.status != 401
                    or number == _MAX_ASKED
                    or not await self._authorizer.challenged(endpoint, answer, scopes, sent, what)
                ):
                    raise await self.error(answer, what, endpoint, sent)
            if guest is not None:
                asked = self._ask_as_nobody(
                    endpoint, *guest, method, answer.link, what, scopes, expect, headers
                )
                async with asked as there_answer:
                    yield there_answer
                    return

    @asynccontextmanager
    async def _ask_as_nobody(
        self,
        endpoint: Endpoint,
        there: Endpoint,
        sent: str,
        method: str,
        link: Link,
        what: str,
        scopes: frozenset[str],
        expect: Sequence[int],
        headers: Mapping[str, str] | None,
    ) -> AsyncIterator[Answer]:
        """The answer of a host that `endpoint` has led to, with the token `sent` for nobody."""
        for is_last in (False, True):
            async with self.transport.ask(
                there, method, link, what, headers=headers, authorization=sent, follow=True
            ) as answer:
                if answer.status in expect:
                    yield answer
                    return
                if (
                    is_last
                    or answer.status != 401
                    or not await self._nobody.challenged(there, answer, scopes, sent, what)
                ):
                    raise await self.error(answer, what, endpoint)
            # The token of an earlier request may have expired.
            sent = await self._nobody.authorization(there, scopes, what)

    async def _guest(
        self, endpoint: Endpoint, answer: Answer, scopes: frozenset[str], what: str
    ) -> tuple[Endpoint, str] | None:
        """How to ask again, with a token for nobody, where a redirect has led to and wants one.

        None if it wants none, or something else: nothing of the endpoint's goes there (SEC-25).
        """
        if answer.status != 401 or answer.origin == endpoint.origin:
            return None
        there = Endpoint(
            answer.link,
            tls=endpoint.tls.for_others(),
            connect_s=endpoint.connect_s,
            source=endpoint.source,
        )
        if not await self._nobody.challenged(there, answer, scopes, "", what):
            return None
        return there, await self._nobody.authorization(there, scopes, what)

    async def error(
        self, answer: Answer, what: str, endpoint: Endpoint, sent: str = ""
    ) -> LighterError:
        """What an unexpected answer means."""
        body = await answer.read_error()
        if answer.origin != endpoint.origin:
            what += f", which sent us to {answer.origin}"
        error = from_answer(what, answer.status, body, answer.header("Retry-After"), self.redactor)
        if answer.status in (401, 403) and answer.origin == endpoint.origin:
            kind = self._authorizer.credential(endpoint).kind
            said = f"{kind} of {endpoint.credential_source}" if kind != "none" else "no credential"
            return type(error)(f"{error.message} ({said})", status=answer.status)
        return error

    def was_asked(self, endpoint: Endpoint) -> bool:
        """Whether the host has wanted to know who we are."""
        return self._authorizer.was_asked(endpoint)

    def gives_up(self, error: LighterError) -> bool:
        """Whether no further try can help, however long the pauses."""
        return self._backoff.gives_up(error)

    async def retried(self, act: Callable[[], Awaitable[T]]) -> T:
        """`act`, tried again as the registry itself deserves it."""
        return await retried(act, self._backoff)

    async def pause(self, failures: int) -> None:
        """The wait after this many failures of something that is not to fail yet."""
        await asyncio.sleep(self._backoff.pause_s(failures, Unavailable("")))

    async def first(
        self, endpoints: Sequence[Endpoint], act: Callable[[Endpoint], Awaitable[T]]
    ) -> T:
        """`act` with each host until one succeeds; with further tries, most for the last.

        Raises the last one's error, with the others' in its words.
        """
        errors: list[LighterError] = []
        for number, endpoint in enumerate(endpoints, 1):
            is_last = number == len(endpoints)
            backoff = self._backoff if is_last else self._backoff.for_mirror()
            try:
                return await retried(partial(act, endpoint), backoff)
            except LighterError as err:
                errors.append(err)
                if not is_last:
                    log.info("%s; the next host is asked", err.message)
        if not errors:
            raise NotFound(f"use registry {self.name}: no host is left to ask")
        last = errors[-1]
        if len(errors) > 1:
            before = "; before: " + "; ".join(err.message for err in errors[:-1])
            last = from_wire(last.code, last.message + before, last.details)
        raise last


def content_type(answer: Answer) -> str:
    """The media type of a body, without parameters."""
    return answer.header("Content-Type").partition(";")[0].strip().lower()
