"""Who a container's process runs as, looked up in the image's own passwd and group files.

The files are content: a worker reads them inside the mounted tree, and what it returns is parsed
as bytes. For a fresh snapshot they are those of the image's layers, which never change, so an
answer is kept per chain id.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

from lighter.daemon.images.worker import Worker, read_files
from lighter.daemon.oci import users
from lighter.daemon.oci.users import Identity
from lighter.daemon.types import Mount

PASSWD, GROUP = "/etc/passwd", "/etc/group"
KEEP = 64
MAX_KEPT_BYTES = 1 << 20

Files = tuple[bytes | None, bytes | None]


class IdentityService:
    """Resolves "user[:group]" for a new container or an exec."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._kept: OrderedDict[str, Files] = OrderedDict()

    async def of_image(
        self, user: str, chain_id: str, mounts: Sequence[Mount], groups: Sequence[str] = ()
    ) -> Identity:
        """For a snapshot just made from `chain_id`; `groups` are names or numbers of further ones.

        Raises InvalidArgument, NotFound.
        """
        files = self._kept.get(chain_id)
        if files is None:
            found = await read_files(self._worker, mounts, (PASSWD, GROUP), users.MAX_FILE_BYTES)
            files = found[PASSWD], found[GROUP]
            if sum(len(data or b"") for data in files) <= MAX_KEPT_BYTES:
                self._kept[chain_id] = files
                while len(self._kept) > KEEP:
                    self._kept.popitem(last=False)
        return await asyncio.to_thread(_identity, user, files, groups)

    async def of_container(
        self, user: str, mounts: Sequence[Mount], groups: Sequence[str] = ()
    ) -> Identity:
        """For an exec: the files as they are in the container's own layer by now."""
        found = await read_files(self._worker, mounts, (PASSWD, GROUP), users.MAX_FILE_BYTES)
        return await asyncio.to_thread(_identity, user, (found[PASSWD], found[GROUP]), groups)


def _identity(user: str, files: Files, groups: Sequence[str]) -> Identity:
    """In a thread: millions of rows may be about the user."""
    return users.with_groups(users.resolve(user, *files), groups, files[1])
