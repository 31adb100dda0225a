"""Names to addresses, without holding up anything else.

getaddrinfo(3) cannot be cancelled, and a name server that is silent keeps it for half a minute. So
lookups have daemon threads of their own: they take no place in the loop's pool of threads, and the
manager can end while one waits.
"""

import asyncio
import contextlib
import errno
import ipaddress
import socket
import threading

from lighter.daemon.registry.addresses import Address

MAX_LOOKUPS = 16
LOOKUP_S = 15.0


class Lookup:
    """At most `at_once` at a time, by one loop; each is given up after `deadline_s`."""

    def __init__(self, deadline_s: float = LOOKUP_S, at_once: int = MAX_LOOKUPS) -> None:
        self._deadline_s = deadline_s
        self._room = asyncio.Semaphore(at_once)

    async def addresses(self, host: str) -> list[Address]:
        """All addresses of a name, in the resolver's order. Raises OSError."""
        async with asyncio.timeout(self._deadline_s):
            await self._room.acquire()
            loop = asyncio.get_running_loop()
            answer: asyncio.Future[list[Address]] = loop.create_future()

            def tell(found: list[Address] | None, error: OSError | None) -> None:
                self._room.release()
                if answer.done():  # nobody waits any more
                    return
                if error is not None:
                    answer.set_exception(error)
                else:
                    answer.set_result(found or [])

            def look() -> None:
                found: list[Address] | None = None
                error: OSError | None = None
                try:
                    found = _look_up(host)
                except (OSError, UnicodeError) as err:
                    error = err if isinstance(err, OSError) else OSError(str(err))
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(tell, found, error)

            thread = threading.Thread(target=look, name="lookup", daemon=True)
            try:
                thread.start()
            except RuntimeError as err:  # no further process is allowed
                self._room.release()
                raise OSError(errno.EAGAIN, str(err)) from err
            return await answer


def _look_up(host: str) -> list[Address]:
    entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    texts = dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in entries)
    return [ipaddress.ip_address(text) for text in texts]
