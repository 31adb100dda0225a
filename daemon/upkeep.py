"""What a manager does beside serving: finish what the one before has left, and keep listening."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from lighter.daemon.journal import Repeated
from lighter.daemon.services import Services
from lighter.daemon.snapshots.types import Snapshotter
from lighter.proto.errors import LighterError
from lighter.proto.faults import hit

log = logging.getLogger("lighter.app")

SWEEP_S = 2.0
LOOK_AT_SOCKETS_S = 5.0  # an idle manager's only work, but for gRPC's own timers
LISTEN_AGAIN_S = 2.0


async def tidy(services: Services) -> None:
    """Finish or undo what the manager before left half done on disk, then keep it tidy."""
    for step in (
        services.mounted.recover,
        services.volumes.tidy,
        services.images.recover,
        partial(_recover_snapshots, services),
        partial(_remove_orphans, services),
    ):
        try:
            await step()
        except LighterError as err:
            log.error("tidy up after the manager before: %s; going on", err)
        except Exception:  # what follows keeps the disk from filling up
            log.exception("tidy up after the manager before; going on")
    hit("start.tidied")
    await services.scheduler.run()


async def _recover_snapshots(services: Services) -> None:
    await services.snapshots.recover([one.name for one in services.namespaces.list()])


async def _remove_orphans(services: Services) -> None:
    names = [one.name for one in services.namespaces.list()]
    if not services.db.loss:
        await services.maker.orphans.remove_all(names)


async def finish_removals(snapshotters: Mapping[str, Snapshotter]) -> None:
    """Let removals end while the database is open; the next start does the rest."""
    for name, snapshotter in snapshotters.items():
        try:
            async with asyncio.timeout(SWEEP_S):
                await snapshotter.sweep()
        except (TimeoutError, LighterError):
            log.info("removed snapshots of %s are swept at the next start", name)


async def keep_trying(listen: Callable[[], Awaitable[None]]) -> None:
    """Listen where others may be before us, or the host not yet: all else goes on without it."""
    told = ""
    while True:
        try:
            return await listen()
        except LighterError as error:
            if error.message != told:
                log.error("%s; trying on", error.message)
            told = error.message
        await asyncio.sleep(LISTEN_AGAIN_S)


async def keep_listening(*listen_again: Callable[[], Awaitable[None] | None]) -> None:
    """A socket's file can be deleted under a server, which the kernel does not tell it."""
    acts = [(act, Repeated(log, "listen again")) for act in listen_again]
    while True:
        await asyncio.sleep(LOOK_AT_SOCKETS_S)
        for act, failures in acts:
            try:
                if (under_way := act()) is not None:
                    await under_way
            except (LighterError, OSError) as err:
                failures.failed(err)
            else:
                failures.ended()
