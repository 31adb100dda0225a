"""containerd's API on both daemons: one Python client, the same calls, no command's start in it.

A life is what a client of the API does for a container: record, snapshot, task, wait before start,
exit, and all of it removed. Rates are taken at one, two and four lives at a time, and beside them
those of a bare loop on the runtime, which no API, database, flush or shim holds up.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from statistics import quantiles
from typing import Any

from bare import BareLoop
from limit import Limit
from measure import CommandFailed, Row, in_turn, run, seconds
from peer import REFERENCE, Peer

from lighter.daemon.grpc.pb import (  # type: ignore[import-untyped]
    containers_pb2,
    snapshots_pb2,
    tasks_pb2,
    types_pb2,
    version_pb2,
)

SNAPSHOTTER = "overlayfs"
AT_ONCE = {1: 1.8, 2: 2.0, 4: 2.2}
EXECS = 1.3
LISTED = 500
_PROCESS = "types.containerd.io/opencontainers/runtime-spec/1/Process"

_SLEEP = ["sleep", "100000"]

_numbers = count(1)


class Client:
    """One daemon's API, and what a container of `true` is made of there."""

    def __init__(self, peer: Peer) -> None:
        # The checkout comes last on the path: its folder `daemon` hides no dependency's.
        sys.path.append(str(Path(__file__).resolve().parent.parent))
        self.name = peer.name
        self.api = importlib.import_module("tests.grpc.client").Api(
            peer.api_address, peer.namespace
        )
        words = ["ctr", "--address", peer.api_address, "--namespace", peer.namespace]
        run([*words, "containers", "create", REFERENCE, "spec", "true"])
        found = self.containers("Get", id="spec").container
        self._runtime = found.runtime
        self.spec = json.loads(found.spec.value)
        self._spec_type = found.spec.type_url
        self._parent = self.snapshots("Stat", key="spec").info.parent
        run([*words, "containers", "rm", "spec"])

    def containers(self, method: str, **fields: Any) -> Any:
        return self.api.call(containers_pb2, "Containers", method, **fields)

    def snapshots(self, method: str, **fields: Any) -> Any:
        return self.api.call(snapshots_pb2, "Snapshots", method, snapshotter=SNAPSHOTTER, **fields)

    def tasks(self, method: str, **fields: Any) -> Any:
        return self.api.call(tasks_pb2, "Tasks", method, **fields)

    def record(self, name: str, args: Sequence[str]) -> None:
        """A container's record alone."""
        process = {**self.spec["process"], "args": list(args)}
        linux = {**self.spec["linux"], "cgroupsPath": f"/{self.api.metadata[0][1]}/{name}"}
        container = containers_pb2.Container(
            id=name,
            image=REFERENCE,
            runtime=self._runtime,
            snapshotter=SNAPSHOTTER,
            snapshot_key=name,
        )
        container.spec.type_url = self._spec_type
        container.spec.value = json.dumps(
            {**self.spec, "process": process, "linux": linux}
        ).encode()
        self.containers("Create", container=container)

    def start(self, name: str, args: Sequence[str]) -> None:
        """A running container without streams."""
        self.record(name, args)
        mounts = self.snapshots("Prepare", key=name, parent=self._parent).mounts
        self.tasks("Create", container_id=name, rootfs=[_copy(mount) for mount in mounts])
        self.tasks("Start", container_id=name)

    def remove(self, name: str) -> None:
        self.tasks("Delete", container_id=name)
        # In this order: what no record names any more is garbage.
        self.snapshots("Remove", key=name)
        self.containers("Delete", id=name)

    def life(self) -> None:
        """create, start, exit, delete of a container of `true`."""
        name = f"api{next(_numbers)}"
        self.record(name, ["true"])
        mounts = self.snapshots("Prepare", key=name, parent=self._parent).mounts
        self.tasks("Create", container_id=name, rootfs=[_copy(mount) for mount in mounts])
        waiting = self.api.future(tasks_pb2, "Tasks", "Wait", container_id=name)
        self.tasks("Start", container_id=name)
        if waiting.result().exit_status:
            raise CommandFailed(f"{self.name}: `true` ended with {waiting.result().exit_status}")
        self.remove(name)

    def exec(self, container: str) -> None:
        name = f"api{next(_numbers)}"
        process = {**self.spec["process"], "args": ["true"]}
        request = tasks_pb2.ExecProcessRequest(container_id=container, exec_id=name)
        request.spec.type_url = _PROCESS
        request.spec.value = json.dumps(process).encode()
        self.tasks("Exec", container_id=container, exec_id=name, spec=request.spec)
        waiting = self.api.future(tasks_pb2, "Tasks", "Wait", container_id=container, exec_id=name)
        self.tasks("Start", container_id=container, exec_id=name)
        if waiting.result().exit_status:
            raise CommandFailed(f"{self.name}: an exec ended with {waiting.result().exit_status}")
        self.tasks("DeleteProcess", container_id=container, exec_id=name)


def _with_args(spec: dict[str, Any], args: list[str]) -> dict[str, Any]:
    return {**spec, "process": {**spec["process"], "args": args}}


def _copy(mount: Any) -> Any:
    return types_pb2.Mount(type=mount.type, source=mount.source, options=mount.options)


def api_rows(peers: Sequence[Peer], limit: Limit, lives: int, turns: int) -> Iterator[Row]:
    """Each row as soon as it is measured; `lives` per sample and `turns` samples."""
    with ExitStack() as stack:
        clients = [Client(peer) for peer in peers]
        for client in clients:
            stack.enter_context(client.api)
        bare = BareLoop(limit, _with_args(clients[0].spec, ["true"]))
        stack.callback(bare.close)
        sides: list[Client | BareLoop] = [*clients, bare]
        for width, bound in AT_ONCE.items():
            row = _rate(f"API: lives per second, {width} at a time", bound)
            for turn in range(turns + 1):
                for side in in_turn(sides, turn):
                    rate = _per_second(side.life, lives, width)
                    if turn:
                        row.add(side.name, rate)
            yield row
        yield _execs(clients, bare, lives, turns)
        yield from _latencies(clients, lives * turns)


def _rate(work: str, bound: float) -> Row:
    return Row(work, "1/s", bound=bound, smaller_is_better=False)


def _per_second(work: Callable[[], None], times: int, width: int) -> float:
    with ThreadPoolExecutor(width) as pool:
        started = time.perf_counter()
        for done in [pool.submit(work) for _ in range(times)]:
            done.result()
        return times / (time.perf_counter() - started)


def _execs(clients: Sequence[Client], bare: BareLoop, times: int, turns: int) -> Row:
    row = _rate("API: execs per second", EXECS)
    target = f"api{next(_numbers)}"
    for client in clients:
        client.start(target, _SLEEP)
    with bare.running(_SLEEP) as beside:
        works = {client.name: partial(client.exec, target) for client in clients}
        works[bare.name] = partial(bare.exec, beside)
        for turn in range(turns + 1):
            for side in in_turn(list(works), turn):
                rate = _per_second(works[side], times, 1)
                if turn:
                    row.add(side, rate)
    for client in clients:
        waiting = client.api.future(tasks_pb2, "Tasks", "Wait", container_id=target)
        client.tasks("Kill", container_id=target, signal=9)
        waiting.result()
        client.remove(target)
    return row


def _latencies(clients: Sequence[Client], times: int) -> Iterator[Row]:
    names = [f"api{next(_numbers)}" for _ in range(LISTED)]
    for client in clients:
        for name in names:
            client.record(name, ["true"])
    works: dict[str, Callable[[Client], object]] = {
        "Version": lambda client: client.api.call(version_pb2, "Version", "Version"),
        "Get of a container": lambda client: client.containers("Get", id=names[0]),
        f"List of {LISTED} containers": lambda client: client.containers("List"),
    }
    for what, work in works.items():
        middle = Row(f"API: {what}, p50 of {times} calls", "ms")
        late = Row(f"API: {what}, p99 of {times} calls", "ms")
        taken: dict[str, list[float]] = {client.name: [] for client in clients}
        for turn in range(times):
            for client in in_turn(clients, turn):
                taken[client.name].append(seconds(lambda client=client: work(client)) * 1000)  # type: ignore[misc] # noqa: B023
        for client in clients:
            cuts = quantiles(taken[client.name], n=100)
            middle.add(client.name, cuts[49])
            late.add(client.name, cuts[98])
        yield middle
        yield late
    for client in clients:
        for name in names:
            client.containers("Delete", id=name)
