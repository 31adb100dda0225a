"""One worker, one job: receive it, lock in, do it, answer, end.

A worker is forked from the spawner, which has imported all of this before: nothing is imported
afterwards, since an upgrade may have replaced the files. It dies with the spawner (by signal) and
gives up when the manager closes the other end of its control socket.
"""

import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from lighter.proto.errors import Internal, InvalidArgument, LighterError
from lighter.proto.faults import hit
from lighter.shim import linux
from lighter.shim.worker import (
    apply,
    archive,
    changes,
    diff,
    extract,
    free,
    imagemount,
    netns,
    pack,
    place,
    process,
    readfiles,
    recompress,
    relabel,
    remap,
    remove,
)
from lighter.shim.worker.channel import Channel, PeerGone
from lighter.shim.worker.failure import typed

Job = Callable[[dict[str, Any], list[int], Channel], dict[str, Any]]

JOBS: dict[str, Job] = {
    "apply": apply.run,
    "changes": changes.run,
    "diff": diff.run,
    "extract": extract.run,
    "free": free.run,
    "import": archive.run,
    "look": pack.look,
    "mount": imagemount.mount,
    "netns": netns.make,
    "netns-no-ipv6": netns.no_ipv6,
    "netns-remove": netns.remove,
    "pack": pack.run,
    "place": place.run,
    "process": process.run,
    "read": readfiles.run,
    "recompress": recompress.run,
    "relabel": relabel.run,
    "remap": remap.run,
    "remove": remove.run,
    "unmount": imagemount.unmount,
}


def serve(control: socket.socket, parent_pid: int | None = None) -> None:
    """Do the one job that arrives on `control` (see channel.py); the caller ends the process.

    `parent_pid` is the spawner's, for the check that prctl(2) asks for: a parent that was gone
    before the call sends no signal any more. Without it only an adoption by pid 1 is seen.
    """
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = os.getppid()
    if parent == 1 or (parent_pid is not None and parent != parent_pid):
        return
    channel = Channel(control)
    try:
        channel.answer(_run(channel))
    except PeerGone:
        return
    except LighterError as err:
        _fail(channel, err)
    except OSError as err:
        _fail(channel, typed(err, "run job"))
    except Exception as err:
        _fail(channel, Internal(f"run job: {type(err).__name__}: {err} ({_place(err)})"))


def _run(channel: Channel) -> dict[str, Any]:
    job, fds = channel.receive()
    hit("worker.asked")  # not later: locked in, it could not write down that it has passed
    name = job.get("job")
    run = JOBS.get(name) if isinstance(name, str) else None
    if run is None:
        raise InvalidArgument(f"run job {name!r}: there is no such job")
    return run(job, fds, channel)


def _fail(channel: Channel, error: LighterError) -> None:
    try:
        channel.fail(error)
    except PeerGone:
        pass


def _place(error: BaseException) -> str:
    """Where it was raised. `traceback` would read source files, which the lock hides."""
    trace = error.__traceback__
    place = "?"
    while trace is not None:
        place = f"{trace.tb_frame.f_code.co_name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place
