"""Reaching a task's shim: its connection, given a moment to come back, or its process."""

import asyncio
import contextlib
import errno
import os
import signal
import time
from collections.abc import Mapping
from typing import Any

from lighter.daemon.procfs import is_stopped, stat_of
from lighter.daemon.spawning.spawner import Child
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.shims import Peer
from lighter.proto import shim_api
from lighter.proto.errors import FailedPrecondition, Unavailable

SIGNAL_S = 10.0  # kill, attach, resize: nothing in the shim takes long
CLOSED_S = 30.0
RETURN_S = 5.0  # in which a shim connects to a new manager
_POLL_S = 0.01
# What setproctitle makes of a shim's title: proc_pid_comm(5).
_SHORT_NAME = b"lighter-shim --"


async def connected(entry: Entry, to_end: bool = False) -> Peer:
    """The connected shim. After a restart of the manager, wait until it is back and has told what
    happened meanwhile: what the caller wants of it may have been done already.

    With `to_end` (kill, stop), go on even if earlier events cannot be committed (a full disk).
    """
    deadline = time.monotonic() + RETURN_S
    while entry.peer is None or not has_told(entry, entry.peer):
        if entry.peer is not None and to_end and entry.peer.refusal is not None:
            break
        if entry.stuck:
            raise Unavailable(f"call shim of {entry.what}: it died; {entry.stuck}")
        if entry.closed or (entry.pidfd < 0 and entry.exit is not None):
            raise FailedPrecondition(f"call shim of {entry.what}: the task has ended")
        if time.monotonic() > deadline:
            raise Unavailable(f"call shim of {entry.what}: it has not connected")
        await asyncio.sleep(_POLL_S)
    if entry.pidfd >= 0 and is_stopped(entry.shim_pid):
        raise Unavailable(f"call shim of {entry.what}: it is stopped (SIGSTOP)")
    if entry.peer.version == 0:
        raise Unavailable(f"call shim of {entry.what}: {entry.unknown_reason}")
    return entry.peer


async def ended_or_stuck(entry: Entry, timeout_s: float) -> bool:
    """Wait for init's end; False after the timeout, or when its container does not end."""
    return await _happened(entry, entry.ended, timeout_s)


async def cleaned_or_stuck(entry: Entry, timeout_s: float) -> bool:
    """Wait until nothing of the task is left; False after the timeout, or when something stays."""
    return await _happened(entry, entry.cleaned, timeout_s)


async def _happened(entry: Entry, event: asyncio.Event, timeout_s: float) -> bool:
    waits = [asyncio.ensure_future(one.wait()) for one in (event, entry.is_stuck)]
    try:
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    return event.is_set()


def has_told(entry: Entry, peer: Peer) -> bool:
    if peer.version == 0 or entry.from_hello:
        return True
    return entry.last_sequence >= int(peer.identity.get("sequence", 0))


def is_alive(record: Mapping[str, Any]) -> bool:
    """Whether the recorded process still is that process: same pid, same start time (proc(5)).

    Raises OSError when it cannot be told, for want of descriptors or memory.
    """
    try:
        fields = stat_of(int(record["pid"]))
    except (KeyError, ValueError, TypeError):
        return False
    except OSError as err:
        return _is_gone(err)
    return fields[0] != b"Z" and int(fields[19]) == record.get("start")


def _is_gone(error: OSError) -> bool:
    """False, as the answer of `is_alive`; raises what says nothing of the process."""
    if error.errno not in (errno.ESRCH, errno.ENOENT, errno.EINVAL):
        raise error
    return False


def find_process(record: Mapping[str, Any]) -> Child | None:
    """The living process of a shim's record {pid, start}; the caller closes its pidfd.

    Raises OSError as `is_alive`: one that is taken for dead is ended.
    """
    try:
        pidfd = os.pidfd_open(int(record["pid"]))
    except (KeyError, ValueError, TypeError, OverflowError):
        return None
    except OSError as err:
        _is_gone(err)
        return None
    # Looked at with the pidfd open: if that was of another process, its start is another too.
    alive = False
    try:
        alive = is_alive(record)
    finally:
        if not alive:
            os.close(pidfd)
    if not alive:
        return None
    return Child(int(record["pid"]), int(record["start"]), pidfd)


def living_shims(instance: str) -> set[int]:
    """Pids of all processes that are called as shims of this instance."""
    title = f"lighter-shim --instance {instance} ".encode()
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if not may_be_shim(int(name)):
                continue
            with open(f"/proc/{name}/cmdline", "rb") as file:
                if file.read(len(title)) == title:
                    found.add(int(name))
    return found


def may_be_shim(pid: int) -> bool:
    """Whether its arguments are worth a look, which waits when its memory is locked: a process may
    wait for a dead disk meanwhile. This does not, and one in a container may call itself a shim.

    Raises OSError for one that is gone.
    """
    with open(f"/proc/{pid}/comm", "rb") as file:
        if file.read(64).rstrip() != _SHORT_NAME:
            return False
    return os.path.samestat(os.stat(f"/proc/{pid}/ns/pid"), os.stat("/proc/self/ns/pid"))


def kill_process(record: Mapping[str, Any]) -> None:
    """SIGKILL to the process of a shim's record, if it still lives."""
    found = find_process(record)
    if found is not None:
        try:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(found.pidfd, signal.SIGKILL)
        finally:
            os.close(found.pidfd)


def call_shim(entry: Entry) -> None:
    """Tell a shim that it can connect, which it tries only now and then by itself."""
    if entry.pidfd >= 0 and entry.peer is None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(entry.pidfd, shim_api.LISTENING)


def kill_shim(entry: Entry) -> None:
    """End a shim that has nothing to do any more, or, as a last resort, one that does not clean up.

    The end of the latter is settled as a lost one's, with a runtime that it waits for.
    """
    if entry.pidfd >= 0:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(entry.pidfd, signal.SIGKILL)
