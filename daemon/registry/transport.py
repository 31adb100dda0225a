"""HTTP as registries are spoken to: what is sent is ours to decide, what comes is capped.

Every wait has a deadline: for the connection, for the answer's head, for progress of a body, which
is judged over a window so that one byte a second is no progress and a long download is no fault.
Redirects are followed here, since credentials, client certificates and configured headers stay with
the origin they are for (SEC-25). No cookie, no .netrc, no environment, no decoding of bodies.

aiohttp is loaded with the first request, in a thread: the manager starts without it.
"""

import asyncio
import importlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lighter.daemon.registry import redact
from lighter.daemon.registry.addresses import Link, Origin, Targets
from lighter.daemon.registry.answer import Answer, Deadlines
from lighter.daemon.registry.endpoints import Endpoint, Tls
from lighter.daemon.registry.failures import Broken, Closed, Refused, reason
from lighter.daemon.registry.lookup import Lookup
from lighter.daemon.registry.proxies import Proxies
from lighter.daemon.registry.redact import Redactor
from lighter.daemon.registry.upload import Feed, Upload
from lighter.proto.errors import (
    InvalidArgument,
    LighterError,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)

if TYPE_CHECKING:
    import aiohttp

MAX_HOPS = 10
MAX_HEADER_BYTES = 64 << 10
REDIRECTS = frozenset({301, 302, 303, 307, 308})

_READ_BUFFER_BYTES = 256 << 10
# The kernel takes no more of an upload than this ahead of the line: with megabytes of it a slow one
# shows no progress for minutes. (What waits above the kernel: body.py.)
_UNSENT_BYTES = 128 << 10


@dataclass(frozen=True)
class Step:
    """One exchange, for whoever wants to see: `ctl registry test`, the log at level debug."""

    endpoint: Endpoint
    method: str
    url: str
    status: int
    sent: str  # the kind of credential that went with it
    note: str = ""


class Transport:
    """The connections of one conversation with one registry. To be closed."""

    def __init__(
        self,
        targets: Targets,
        proxies: Proxies,
        redactor: Redactor,
        deadlines: Deadlines,
        lookup: Lookup,
        trace: Callable[[Step], None] = lambda step: None,
    ) -> None:
        self._targets = targets
        self._proxies = proxies
        self._redactor = redactor
        self._deadlines = deadlines
        self._lookup = lookup
        self._trace = trace
        # None: for plain http, which needs no certificates.
        self._sessions: dict[Tls | None, aiohttp.ClientSession] = {}

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    @asynccontextmanager
    async def ask(
        self,
        endpoint: Endpoint,
        method: str,
        link: Link,
        what: str,
        *,
        headers: Mapping[str, str] | None = None,
        authorization: str = "",
        data: bytes | Upload | None = None,
        follow: bool = False,
        stay: bool = False,
    ) -> AsyncIterator[Answer]:
        """One request and the answer to it, after redirects where `follow` allows them.

        With `stay` one that leaves the origin is the answer itself. `authorization` and the
        endpoint's own headers go to the endpoint's origin alone. Raises Broken, Refused,
        Unavailable, PermissionDenied for a refused target, InvalidArgument.
        """
        hops = 0
        while True:
            answer = await self._once(endpoint, method, link, what, headers, authorization, data)
            self._trace_step(endpoint, method, answer, authorization)
            if answer.status not in REDIRECTS or not follow:
                break
            location = answer.header("Location")
            if stay and _leads_away(answer, location):
                break
            await answer.release()
            hops += 1
            if hops > MAX_HOPS:
                raise InvalidArgument(f"{what}: over {MAX_HOPS} redirects")
            link = self.led_to(answer, location, f"{what}: follow redirect {hops}")
        try:
            yield answer
        finally:
            await answer.release()

    def led_to(self, answer: Answer, location: str, what: str) -> Link:
        """Where an answer's location leads, if it may (SEC-25, SEC-28)."""
        link = answer.link.join(location, what)
        if answer.origin.scheme == "https" and link.origin.scheme == "http":
            raise PermissionDenied(
                f"{what} from {answer.origin} to {link.origin}: from https to plain http"
            )
        self._targets.check(link.origin, f"{what} to {link.origin}")
        return link

    def proxy_of(self, origin: Origin) -> str:
        """The proxy for an origin as it may be told, "" for none."""
        proxy = self._proxies.proxy_of(origin)
        return redact.url(proxy) if proxy else ""

    def check_target(self, link: Link, what: str) -> None:
        self._targets.check(link.origin, what)

    async def _once(
        self,
        endpoint: Endpoint,
        method: str,
        link: Link,
        what: str,
        headers: Mapping[str, str] | None,
        authorization: str,
        data: bytes | Upload | None,
    ) -> Answer:
        is_own = link.origin == endpoint.origin
        tls = endpoint.tls if is_own else endpoint.tls.for_others()
        session = await self._session(tls if link.origin.scheme == "https" else None)
        sent = [("Accept-Encoding", "identity"), *(headers or {}).items()]
        if is_own:
            for name, values in endpoint.headers.items():
                sent += [(name, value) for value in values]
            if authorization:
                sent = [pair for pair in sent if pair[0].lower() != "authorization"]
                sent.append(("Authorization", authorization))
        import aiohttp
        import yarl

        from lighter.daemon.registry.body import Body

        timeout = aiohttp.ClientTimeout(sock_connect=endpoint.connect_s)
        proxy = self._proxies.proxy_of(link.origin) or None
        feed = Feed(data) if callable(data) else None

        async def request() -> aiohttp.ClientResponse:
            return await session.request(
                method,
                yarl.URL(link.url, encoded=True),
                headers=sent,
                data=Body(feed) if feed else data,
                allow_redirects=False,
                timeout=timeout,
                proxy=proxy,
            )

        try:
            if feed:
                response = await feed.watch(request(), self._deadlines, what)
            else:
                async with asyncio.timeout(endpoint.connect_s + self._deadlines.head_s):
                    response = await request()
        except (aiohttp.ClientError, OSError, ValueError) as err:
            raise self._failure(err, what, link, endpoint) from err
        size = sum(len(name) + len(value) for name, value in response.raw_headers)
        if size > MAX_HEADER_BYTES:
            response.close()
            raise ResourceExhausted(f"{what}: the answer's headers have {size} bytes")
        return Answer(response, link, what, self._deadlines)

    def _trace_step(
        self, endpoint: Endpoint, method: str, answer: Answer, authorization: str
    ) -> None:
        is_own = answer.origin == endpoint.origin
        sent = authorization.partition(" ")[0] if authorization and is_own else ""
        note = ""
        if answer.status in REDIRECTS:
            note = "to " + redact.url(answer.header("Location")[:500])
        elif answer.status == 401:
            challenges = answer.headers.getall("WWW-Authenticate", [])
            note = "it asks for " + ", ".join(text.partition(" ")[0] for text in challenges[:4])
        url = redact.url(answer.link.url)
        clean = self._redactor.clean
        self._trace(Step(endpoint, method, url, answer.status, sent, clean(note)))

    async def _session(self, tls: Tls | None) -> "aiohttp.ClientSession":
        if tls not in self._sessions:
            # 150 ms that other clients of this loop need not wait for.
            await asyncio.to_thread(importlib.import_module, "aiohttp")
            context = await asyncio.to_thread(tls_context, tls) if tls else True
            if tls not in self._sessions:
                self._sessions[tls] = self._new_session(context)
        return self._sessions[tls]

    def _new_session(self, context: ssl.SSLContext | bool) -> "aiohttp.ClientSession":
        import aiohttp

        from lighter.proto.version import VERSION

        connector = aiohttp.TCPConnector(
            ssl=context,
            limit=0,  # callers bound what they ask for at a time
            use_dns_cache=False,
            resolver=_resolver(self._targets, self._lookup),
            keepalive_timeout=30.0,
            socket_factory=_new_socket,
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            timeout=aiohttp.ClientTimeout(),
            read_bufsize=_READ_BUFFER_BYTES,
            headers={"User-Agent": f"lighter/{VERSION}"},
        )

    def _failure(self, err: Exception, what: str, link: Link, endpoint: Endpoint) -> LighterError:
        """What went wrong before there was an answer."""
        import aiohttp

        said = self._redactor.clean(reason(err))
        if isinstance(err, TimeoutError):
            waited = f"{endpoint.connect_s:g} s to connect, {self._deadlines.head_s:g} s to answer"
            return Broken(f"{what}: {link.origin} takes over {waited}")
        if isinstance(err, aiohttp.ClientConnectorCertificateError):
            cause = self._redactor.clean(str(err.certificate_error))
            return Unavailable(f"{what}: the certificate of {link.origin} is not valid: {cause}")
        if isinstance(err, aiohttp.ClientSSLError | ssl.SSLError):
            hint = ""
            if "WRONG_VERSION_NUMBER" in str(err) or "RECORD_LAYER_FAILURE" in str(err):
                hint = " (does it speak plain http? then say so: --plain-http, or in hosts.toml)"
            return Unavailable(f"{what}: no TLS with {link.origin}: {said}{hint}")
        if isinstance(err, aiohttp.ClientConnectorDNSError):
            return Unavailable(f"{what}: {link.origin.host} cannot be resolved: {said}")
        if isinstance(err, aiohttp.ClientConnectorError):
            return Refused(f"{what}: connect to {link.origin}: {said}")
        if isinstance(err, aiohttp.ClientHttpProxyError):
            return Unavailable(f"{what}: the proxy answers {err.status}")
        if isinstance(err, aiohttp.ClientOSError | aiohttp.ServerDisconnectedError):
            return Closed(f"{what}: {link.origin} closed the connection ({said})")
        return InvalidArgument(f"{what}: the answer of {link.origin} is not HTTP: {said}")


def _leads_away(answer: Answer, location: str) -> bool:
    """Whether it is an address, and of another origin."""
    try:
        return answer.link.join(location, "follow redirect").origin != answer.origin
    except InvalidArgument:
        return False


def _new_socket(address: Sequence[Any]) -> socket.socket:
    """For one of getaddrinfo(3)'s answers."""
    made = socket.socket(*address[:3])
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
    return made


def tls_context(tls: Tls) -> ssl.SSLContext:
    """Raises InvalidArgument for a file that cannot be used."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for path in tls.ca:
        try:
            context.load_verify_locations(cafile=path)
        except (OSError, ssl.SSLError) as err:
            raise InvalidArgument(f"read CA certificate {path}: {reason(err)}") from err
    for certificate, key in tls.client:
        try:
            context.load_cert_chain(certificate, key or None, password=_no_password)
        except (OSError, ssl.SSLError) as err:
            raise InvalidArgument(f"read client certificate {certificate}: {reason(err)}") from err
    if tls.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _no_password() -> str:
    """An encrypted key: OpenSSL would ask at the terminal."""
    return ""


def _resolver(targets: Targets, lookup: Lookup) -> Any:
    """A resolver that answers with addresses that may be dialled, which then are dialled."""
    import aiohttp.abc

    class Resolver(aiohttp.abc.AbstractResolver):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
        ) -> list[aiohttp.abc.ResolveResult]:
            found = await lookup.addresses(host)
            return [
                aiohttp.abc.ResolveResult(
                    hostname=host,
                    host=str(address),
                    port=port,
                    family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                    proto=socket.IPPROTO_TCP,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
                for address in targets.usable(host, port, found, f"connect to {host}:{port}")
            ]

        async def close(self) -> None:
            pass

    return Resolver()
