"""Users of an image with hostile files: the manager goes on meanwhile."""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import msgpack
import pytest

from lighter.daemon.containers.identity import GROUP, PASSWD, IdentityService
from lighter.daemon.oci.users import Identity
from lighter.daemon.types import Mount

ROWS = b"a::1:root\n" * 100_000


class Workers:
    async def run(self, _job: dict[str, Any], fds: Sequence[int]) -> dict[str, Any]:
        packed = msgpack.packb({"files": {PASSWD: b"root:x:0:0\n", GROUP: ROWS}, "stat": {}})
        return {"size_bytes": os.write(fds[0], packed)}


@pytest.mark.parametrize("of_image", [True, False])
def test_sec_39_rows_without_end_do_not_hold_the_manager(of_image: bool) -> None:
    async def resolved() -> tuple[Identity, int]:
        service = IdentityService(Workers())  # type: ignore[arg-type]
        mounts = [Mount("bind", "/image", ())]
        work = service.of_image("", "chain", mounts) if of_image else None
        asked = asyncio.ensure_future(work or service.of_container("", mounts))
        turns = 0
        while not asked.done():
            await asyncio.sleep(0)
            turns += 1
        return asked.result(), turns

    identity, turns = asyncio.run(asyncio.wait_for(resolved(), 60))
    assert identity.additional_gids == (0, 1)
    assert turns > 20, "others have their turns while it is looked up"
