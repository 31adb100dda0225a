"""The page that Prometheus reads, at containerd's path: for this host alone, if asked for."""

import asyncio
import logging
from collections.abc import Callable

from aiohttp import web

from lighter.daemon.config.listening import TcpAddress
from lighter.daemon.limits import PAGE
from lighter.daemon.metrics.prometheus import (
    CONTENT_TYPE,
    Family,
    Sample,
    named,
    of_containers,
    text,
)
from lighter.daemon.tasks import metrics
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.supervisor import Supervisor
from lighter.daemon.version import REVISION
from lighter.proto.errors import FailedPrecondition, NotFound
from lighter.proto.version import VERSION

log = logging.getLogger("lighter.metrics")

PATH = "/v1/metrics"
STOP_S = 1.0
MOST_COMPLAINTS = 100
IDLE_S = 15.0
LIFE_S = 30.0  # of a connection: one request, and nobody has to read what is answered
BACKLOG = 8  # so many are accepted before one of them is counted
_BUILD = "containerd_build_info_total"
_FULL = b"the page has as many connections as it may have; try again\n"


class MetricServer:
    """One reader is answered at a time; others wait. `more` adds what is not of containers.

    A connection is for one request. Of more than `most` the later ones hear so.
    """

    def __init__(
        self,
        address: TcpAddress,
        supervisor: Supervisor,
        more: Callable[[], list[Family]],
        most: Callable[[], int] = PAGE.places,
    ) -> None:
        self._address = address
        self._most = most
        self._supervisor = supervisor
        self._more = more
        self._one = asyncio.Lock()
        self._complained: set[str] = set()
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Raises FailedPrecondition when the address cannot be had, and may be tried again then."""
        application = web.Application(client_max_size=1024)
        application.router.add_get(PATH, self._page)
        application.on_response_prepare.append(_once)
        runner = web.AppRunner(
            application, access_log=None, shutdown_timeout=STOP_S, keepalive_timeout=IDLE_S
        )
        await runner.setup()
        served = runner.server
        assert served is not None  # of a runner that is set up

        def connected() -> asyncio.Protocol:
            return _Brief(served()) if len(served.connections) < self._most() else _Refusing()

        host, port = str(self._address.host), self._address.port
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(connected, host, port, backlog=BACKLOG)
        except OSError as err:
            await runner.cleanup()
            raise FailedPrecondition(f"bind {self._address}: {err.strerror or err}") from err
        self._runner = runner
        log.info("metrics are served address=%s path=%s", self._address, PATH)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _page(self, _request: web.Request) -> web.Response:
        async with self._one:
            entries = list(self._supervisor.entries.values())
            more = self._more()  # what it counts, the loop changes
            body = await asyncio.to_thread(self._written, entries, more)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    def _written(self, entries: list[Entry], more: list[Family]) -> bytes:
        measured = []
        for entry in entries:
            try:
                numbers = named(metrics.of_task(entry))
            except (NotFound, OSError):
                continue  # it does not run, or ends this moment
            except Exception as err:  # the others' numbers are wanted all the same
                self._complain(f"measure {entry.what}: it is left out: {err!r}")
                continue
            measured.append((entry.namespace, entry.id, numbers))
        return text([_build(), *more, *of_containers(measured)]).encode()

    def _complain(self, why: str) -> None:
        """Once: the page is read every few seconds."""
        if why not in self._complained and len(self._complained) < MOST_COMPLAINTS:
            self._complained.add(why)
            log.error("%s", why, exc_info=True)


async def _once(_request: web.BaseRequest, response: web.StreamResponse) -> None:
    """The connection ends with this answer."""
    response.force_close()
    response.headers["Connection"] = "close"


class _Brief(asyncio.Protocol):
    """A connection that ends after LIFE_S, whatever it is about."""

    def __init__(self, inner: asyncio.Protocol) -> None:
        self._inner = inner
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._end = asyncio.get_running_loop().call_later(LIFE_S, transport.abort)
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._end is not None:
            self._end.cancel()
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


class _Refusing(asyncio.Protocol):
    """A connection too many: it is told so, and let go."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(_FULL), _FULL)
        )
        transport.close()


def _build() -> Family:
    """With a constant value: what it tells is in its labels."""
    return Family(_BUILD, "counter", [Sample({"revision": REVISION, "version": VERSION}, 1)])
