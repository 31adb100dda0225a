"""What a shim does at first, done once by the spawner: caches are filled before they are shared.

A first call makes the interpreter specialise code, fill its attribute cache and create objects; in
the spawner that happens once, in a shim it would happen in memory of its own. Nothing here leaves
a descriptor, a process or a thread.
"""

import os

from lighter.proto import codec
from lighter.shim import cgroup, files, linux
from lighter.shim.loop import Future, Loop
from lighter.shim.process import Process
from lighter.shim.spawn import spawn
from lighter.shim.stdio import Stdio
from lighter.shim.streams import SharedBuffer

_ROUNDS = 12  # the interpreter specialises a function after eight calls


def warm_up() -> None:
    """A dry run of everything that needs no container and no socket."""
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 0)
    for _ in range(_ROUNDS):
        _codec()
        _spawn_nothing()
        files.json_object({"pid": 1, "id": "x"})
        cgroup.of_process(os.getpid())
        loop = Loop(_raise)
        process = Process("", Stdio(loop, SharedBuffer(), "", "drop", None))
        process.stdio.open_pipes(True, True, True)
        future = Future()
        loop.spawn(_wait(loop, future))
        loop.call_soon(future.set)
        loop.run()
        process.stdio.close()
        loop.close()


def _spawn_nothing() -> None:
    try:
        spawn(["/"], {"PATH": "/"}, (0, 1, 2))
    except OSError:
        pass  # a directory cannot be executed


def _codec() -> None:
    for message in (
        codec.Welcome(1, [1], []),
        codec.Hello(1, 1, ["x"], {"pid": 1}),
        codec.Request(1, 1, "task", "start", None, {}, {}),
        codec.Response(1, 1, {"pid": 1}),
        codec.Event(1, 1, "/tasks/start", 1, {"pid": 1}),
        codec.Ack(1, 1),
    ):
        codec.decode(codec.encode(message))


async def _wait(loop: Loop, future: Future) -> None:
    await loop.within(future, 1, "wait")
    loop.stop()


def _raise(error: BaseException) -> None:
    raise error
