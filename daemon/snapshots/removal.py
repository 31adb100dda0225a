"""Removing a snapshot that nothing needs any more, when nobody waits for the outcome."""

import logging

from lighter.daemon.snapshots.types import Snapshotter
from lighter.proto.errors import LighterError

log = logging.getLogger("lighter.snapshots")


async def remove_quietly(snapshotter: Snapshotter, namespace: str, key: str) -> None:
    """What fails is logged; a sweep tries again."""
    try:
        await snapshotter.remove(namespace, key)
    except LighterError as err:
        log.warning("remove snapshot %s: %s", key, err)
