"""Reaching a task's shim: its connection, given a moment to come back, or its process."""

import asyncio
import contextlib
import signal
import time

from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.shims import Peer
from lighter.proto.errors import FailedPrecondition, Unavailable

START_S = 70.0
SIGNAL_S = 10.0  # kill, attach, resize: nothing in the shim takes long
CLOSED_S = 30.0
HELLO_S = 5.0
_POLL_S = 0.01


async def connected(entry: Entry) -> Peer:
    """The connected shim. After a restart of the manager it is given time to come back."""
    deadline = time.monotonic() + HELLO_S
    while entry.peer is None:
        if entry.closed or (entry.pidfd < 0 and entry.exit is not None):
            raise FailedPrecondition(f"call shim of {entry.what}: the task has ended")
        if time.monotonic() > deadline:
            raise Unavailable(f"call shim of {entry.what}: it has not connected")
        await asyncio.sleep(_POLL_S)
    if entry.peer.version == 0:
        raise Unavailable(f"call shim of {entry.what}: {entry.unknown_reason}")
    return entry.peer


def kill_shim(entry: Entry) -> None:
    """The last resort for a shim that does not clean up; its end is settled as a lost one's."""
    if entry.pidfd >= 0:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(entry.pidfd, signal.SIGKILL)
