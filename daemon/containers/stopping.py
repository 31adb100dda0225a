"""Stopping all containers: what a machine's shutdown and the removal of the package ask for.

All namespaces, all at once, each with the signal that its container names and the same time; also
what is started meanwhile. None is started again before a manager starts, or somebody starts it.
A container whose shim does not do it any more is ended without it. It is over when their networks
are given back: with the package goes who would do that later.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

from lighter.daemon.containers.service import ContainerService
from lighter.daemon.restarts.service import Restarts
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.reach import CLOSED_S, cleaned_or_stuck, kill_shim
from lighter.daemon.tasks.service import TaskService
from lighter.daemon.tasks.supervisor import Supervisor
from lighter.daemon.tasks.types import Exit
from lighter.proto import states
from lighter.proto.errors import DeadlineExceeded, LighterError, NotFound, Unavailable

LOOK_S = 0.1


@dataclass(frozen=True)
class Stopped:
    """One container: how its task ended, or why it could not be ended."""

    namespace: str
    id: str
    exit: Exit | None
    error: str = ""


class StopAll:
    """Ends every task that there is."""

    def __init__(
        self,
        supervisor: Supervisor,
        containers: ContainerService,
        tasks: TaskService,
        restarts: Restarts,
        networks_released: Callable[[], Awaitable[None]],
    ) -> None:
        self._networks_released = networks_released
        self._debts = restarts.debts
        self._supervisor = supervisor
        self._containers = containers
        self._tasks = tasks

    async def run(self, timeout_s: float) -> AsyncGenerator[Stopped]:
        """Each container as it ends: after its stop signal, or at the latest SIGKILL at the end of
        `timeout_s`. Closing the iterator leaves the rest as it is. Networks have till CLOSED_S
        after that: a unit's TimeoutStopSec= has room for all of it.
        """
        deadline = time.monotonic() + timeout_s
        self._debts.hold_owed()
        known: set[str] = set()
        under_way: set[asyncio.Task[Stopped]] = set()
        try:
            first = True
            while first or under_way or (self._creating() and time.monotonic() < deadline):
                if first or time.monotonic() < deadline:
                    for entry in self._running():
                        if entry.incarnation not in known:
                            known.add(entry.incarnation)
                            left_s = max(0.0, deadline - time.monotonic())
                            under_way.add(asyncio.create_task(self._stop(entry, left_s)))
                first = False
                if not under_way:
                    await asyncio.sleep(LOOK_S)
                    continue
                ended, under_way = await asyncio.wait(
                    under_way, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED
                )
                for task in ended:
                    yield task.result()
        finally:
            for task in under_way:
                task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, deadline + CLOSED_S - time.monotonic())):
                await self._given_back()

    async def _given_back(self) -> None:
        """Also of what has ended before: its network may be being given back."""
        for entry in list(self._supervisor.entries.values()):
            if entry.is_task and entry.exit is not None:
                await cleaned_or_stuck(entry, CLOSED_S)
        await self._networks_released()

    def _running(self) -> list[Entry]:
        return [
            entry
            for entry in self._supervisor.entries.values()
            if entry.is_task and entry.exit is None
        ]

    def _creating(self) -> bool:
        return any(entry.state == states.CREATING for entry in self._supervisor.entries.values())

    async def _stop(self, entry: Entry, timeout_s: float) -> Stopped:
        try:
            await self._ask_to_end(entry, timeout_s)
        except LighterError as err:
            if entry.exit is None:
                return Stopped(entry.namespace, entry.id, None, err.message)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSED_S):
                await entry.cleaned.wait()
        return Stopped(entry.namespace, entry.id, entry.exit)

    async def _ask_to_end(self, entry: Entry, timeout_s: float) -> None:
        """Raises DeadlineExceeded when it runs on all the same."""
        namespace, id_ = entry.namespace, entry.id
        self._debts.hold(namespace, id_)
        try:
            if entry.state == states.PAUSED:
                # A frozen process takes no signal but the last one.
                with contextlib.suppress(LighterError):
                    await self._tasks.resume(namespace, id_)
            try:
                await self._containers.stop(namespace, id_, timeout_s)
            except NotFound:  # a task without a record, found by its shim
                await self._tasks.stop(namespace, id_, signal.SIGTERM, timeout_s)
        except (Unavailable, DeadlineExceeded):
            # Its end is noticed, and what is left in the cgroup is ended: a lost shim's container.
            kill_shim(entry)
            try:
                async with asyncio.timeout(CLOSED_S):
                    await entry.ended.wait()
            except TimeoutError as err:
                raise DeadlineExceeded(
                    f"stop task {id_}: it runs on {CLOSED_S:g} s after its shim was ended"
                ) from err
