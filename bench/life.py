"""One container's life step by step: by the manager's socket, and from a bare loop on the runtime.

Both run the same config.json on an overlay of the same files, in turns, one at a time. What the
manager and the shim add is the difference; the rows say where it goes. What is not runc in the bare
loop is one mkdir, one mount and one file. It calls `runc start` and `runc delete` besides, whose
work the shim does itself, and waits in `runc create` for the cgroup lock, which the manager takes
earlier. So the last rows take each side's own calls away: what is added is bounded there. The
manager is asked as `ctl` asks it, from this process: no command's start is measured.
"""

import json
import os
from collections.abc import Container, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from bare import BareLoop
from exits import Exits
from limit import Limit
from measure import CommandFailed, Row, in_turn, seconds
from peer import REFERENCE, Peer
from peers import Lighter

ADDED_MS = 8


class _Steps:
    """The rows of one kind of life, filled under a peer's name."""

    def __init__(self, rows: dict[str, Row], peer: str) -> None:
        self._rows = rows
        self._peer = peer

    def __call__(self, step: str, work: Any) -> None:
        self._rows[step].add(self._peer, seconds(work) * 1000)


def life_rows(peers: Sequence[Peer], limit: Limit, times: int) -> list[Row]:
    """Steps in ms, the whole, and what manager and shim add to the runtime's own calls."""
    lighter = next(peer for peer in peers if isinstance(peer, Lighter))
    names = ("container made", "task created", "started", "exit seen", "deleted", "removed")
    rows = {name: Row(f"life: {name}", "ms") for name in names}
    whole = Row("life: all of it, one at a time", "ms")
    added = Row("life: all of it, Lighter's less the bare loop's", "ms")
    calls = Row("life: in the runtime's own processes, by the clock", "ms")
    rest = Row("life: all of it less the runtime's own processes", "ms")
    beyond = Row("life: the same, Lighter's less the bare loop's", "ms", at_most=ADDED_MS)
    client = lighter.connected()
    with ExitStack() as stack:
        stack.callback(client.close)
        exits = _exits(stack)
        bare = BareLoop(limit, _spec(client))
        stack.callback(bare.close)
        runtime = limit.runtime
        for turn in range(times + 1):
            kept = rows if turn else {name: Row("", "") for name in names}
            name = f"life{turn}"
            sides = {
                "lighter": partial(_through_api, client, runtime, name, _Steps(kept, "lighter")),
                "runc": partial(bare.life, _Steps(kept, "runc")),
            }
            taken, called = {}, {}
            for side in in_turn(list(sides), turn):
                parents = lighter.shims() if side == "lighter" else {os.getpid()}
                _runtime_ms(exits, runtime, parents)
                taken[side] = seconds(sides[side]) * 1000
                if side == "lighter":
                    parents |= lighter.shims()
                called[side] = _runtime_ms(exits, runtime, parents)
            if turn:
                for side in sides:
                    whole.add(side, taken[side])
                    calls.add(side, called[side])
                    rest.add(side, taken[side] - called[side])
                added.add("lighter", taken["lighter"] - taken["runc"])
                beyond.add("lighter", rest.samples["lighter"][-1] - rest.samples["runc"][-1])
    return [*rows.values(), whole, added, *([calls, rest, beyond] if exits else [])]


def _exits(stack: ExitStack) -> Exits | None:
    """None where the kernel does not tell what ends."""
    try:
        return stack.enter_context(Exits())
    except CommandFailed:
        return None


def _runtime_ms(exits: Exits | None, runtime: str, parents: Container[int]) -> float:
    """How long the calls of `runtime` by these since the last question lasted."""
    ended = exits.take() if exits else []
    calls = (one for one in ended if one.pid == one.process and one.name == runtime)
    return sum(call.life_us for call in calls if call.parent in parents) / 1000


def _through_api(client: Any, runtime: str, name: str, step: _Steps) -> None:
    def made() -> None:
        client.call(
            "containers.create",
            image=REFERENCE,
            id=name,
            args=["true"],
            runtime=runtime,
            seccomp="unconfined",
            log={"driver": "none"},
        )

    step("container made", made)
    step("task created", lambda: client.call("tasks.create", id=name))
    step("started", lambda: client.call("tasks.start", id=name))
    step("exit seen", lambda: client.call("tasks.wait", id=name))
    step("deleted", lambda: client.call("tasks.delete", id=name))
    step("removed", lambda: client.call("containers.delete", id=name))


def _spec(client: Any) -> dict[str, Any]:
    """The config.json that the manager makes, taken from a container that never runs."""
    client.call(
        "containers.create",
        image=REFERENCE,
        id="life-spec",
        args=["true"],
        seccomp="unconfined",
        log={"driver": "none"},
    )
    text = client.call("containers.get", id="life-spec")["container"]["spec"]
    client.call("containers.delete", id="life-spec")
    spec: dict[str, Any] = json.loads(text)
    return spec
