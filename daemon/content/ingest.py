"""An ingest: a private directory in which a worker writes content before it has a name."""

import asyncio
import os
import secrets
import shutil
from types import TracebackType

from lighter.daemon.errors import from_os
from lighter.daemon.whole import whole
from lighter.proto.errors import InvalidArgument


class Ingest:
    """Owns `path` (mode 0700) and the descriptor `fd` on it; leaving the `async with` removes both.

    What was adopted has been renamed away by then. A manager that dies leaves the directory to
    the next start.
    """

    def __init__(self, parent_dir: str) -> None:
        self.path = f"{parent_dir}/{secrets.token_hex(8)}"
        try:
            os.mkdir(self.path, 0o700)
            self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as err:
            raise from_os("make ingest", err) from err

    def file(self, name: object) -> str:
        """The path of one file in it. Raises InvalidArgument for what is not a plain name."""
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
            raise InvalidArgument(f"find ingest file {name!r}: it is not a plain file name")
        return f"{self.path}/{name}"

    async def close(self) -> None:
        """Remove what was not adopted. May be called twice."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        try:
            os.rmdir(self.path)
        except OSError:  # there is more than that, it may be gigabytes
            await whole(asyncio.to_thread(shutil.rmtree, self.path, True))

    async def __aenter__(self) -> "Ingest":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
