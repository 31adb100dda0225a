"""Health checks: each running container that has one is asked in its own time.

Every container has a task of its own here, so that one which does not answer holds up nobody. What
is known is written after each probe: a later manager goes on from there. A paused container is
not asked, and what was asked while it was paused is not judged.
"""

import asyncio
import logging
import time
from typing import Any

from lighter.daemon.events.log import EventLog
from lighter.daemon.health.check import STARTING, Health, HealthCheck, Probe, from_record
from lighter.daemon.health.probe import Prober
from lighter.daemon.health.store import HealthStore
from lighter.daemon.journal import Repeated
from lighter.daemon.metadata.containers import ContainerStore
from lighter.daemon.tasks.entry import PROBE_PREFIX, Entry
from lighter.daemon.tasks.supervisor import Supervisor
from lighter.proto import events, states
from lighter.proto.errors import LighterError, NotFound

log = logging.getLogger("lighter.health")


class HealthService:
    """Told by the supervisor of each task that runs."""

    def __init__(
        self,
        *,
        store: HealthStore,
        containers: ContainerStore,
        prober: Prober,
        supervisor: Supervisor,
        events_log: EventLog,
    ) -> None:
        self._store = store
        self._containers = containers
        self._prober = prober
        self._supervisor = supervisor
        self._events = events_log
        self._watched: set[str] = set()

    def recover(self) -> None:
        """Go on with the checks of all tasks that run."""
        for entry in self._supervisor.entries.values():
            if entry.state in (states.RUNNING, states.PAUSED):
                self.on_started(entry)

    def on_started(self, entry: Entry) -> None:
        """A task runs; it is watched until its end if its container has a check."""
        try:
            container = self._containers.get(entry.namespace, entry.id)
        except NotFound:
            return
        try:
            check = from_record(container.options.get("health") or {})
        except (AttributeError, TypeError, ValueError) as err:
            log.error("read health check of %s: its record is damaged (%s)", entry.what, err)
            return
        if check is None or entry.incarnation in self._watched:
            return
        self._watched.add(entry.incarnation)
        self._supervisor.in_background(self._watch(entry, check))

    async def _watch(self, entry: Entry, check: HealthCheck) -> None:
        failures = Repeated(log, f"ask for health of {entry.what}")
        old_probes = _OldProbes(self._prober, entry)
        try:
            await old_probes.end()
            health = self._store.get(entry.namespace, entry.id)
            if health is None or health.incarnation != entry.incarnation:
                health = self._keep(entry, Health(entry.incarnation), STARTING)
            # The clock is looked at once: it may be set while the container starts.
            began_s = time.monotonic() - _age_s(entry)
            while await self._runs_on(entry, health.pause_s(check, time.monotonic() - began_s)):
                if entry.state == states.RUNNING:
                    await old_probes.end()
                asked_s = time.monotonic() - began_s
                if entry.state != states.RUNNING:
                    continue
                try:
                    probe = await self._prober.run(entry, check)
                except Exception as err:  # the manager's own, for one a lack of descriptors
                    failures.failed(err)
                    continue
                failures.ended()
                if entry.state != states.RUNNING or entry.exit is not None:
                    continue
                before, health = health, health.after(probe, check, asked_s)
                self._keep(entry, health, before.status)
        finally:
            self._watched.discard(entry.incarnation)

    async def _runs_on(self, entry: Entry, pause_s: float) -> bool:
        """Wait; False once the task has ended."""
        try:
            async with asyncio.timeout(pause_s):
                await entry.ended.wait()
        except TimeoutError:
            return entry.exit is None
        return False

    def _keep(self, entry: Entry, health: Health, before: str) -> Health:
        """Write it down, and tell when it is another than before."""
        seen = []
        try:
            with self._store.changes() as tx:
                kept = self._store.put(tx, entry.namespace, entry.id, health)
                if kept and health.status != before:
                    body = {
                        "id": entry.id,
                        "status": health.status,
                        "failing_streak": health.failing_streak,
                    }
                    seen.append(
                        self._events.append(tx, entry.namespace, events.CONTAINER_HEALTH, body)
                    )
        except LighterError as err:  # a full disk: the next one is written again
            log.error("keep health of %s: %s", entry.what, err)
            return health
        self._events.announce(*seen)
        return health

    # looking

    def get(self, namespace: str, container_id: str) -> dict[str, Any] | None:
        """The health of its last task, in Docker's words: status, failing_streak, log."""
        health = self._store.get(namespace, container_id)
        if health is None:
            return None
        return {
            "status": health.status,
            "failing_streak": health.failing_streak,
            "log": [_shown(probe) for probe in health.log],
        }

    def statuses(self, namespace: str) -> dict[str, str]:
        """Statuses by incarnation."""
        return dict(self._store.statuses(namespace).values())


class _OldProbes:
    """The probes that the last manager had under way in a task. The shim may connect later, and
    then tell of more.
    """

    def __init__(self, prober: Prober, entry: Entry) -> None:
        self._prober = prober
        self._entry = entry
        self._ended: set[str] = set()  # by what can be done; a process may outlive that
        self._failures = Repeated(log, f"end earlier probes of {entry.what}")

    async def end(self) -> None:
        if self._prober.is_ending(self._entry):
            return  # of one that is no old one
        self._ended &= self._entry.execs.keys()
        for exec_id, exec_ in list(self._entry.execs.items()):
            is_old = exec_id.startswith(PROBE_PREFIX) and exec_.state != states.CREATING
            if not is_old or exec_id in self._ended:
                continue
            try:
                await self._prober.end(self._entry, exec_id)
            except (LighterError, OSError) as err:
                self._failures.failed(err)
                return
            self._ended.add(exec_id)
        self._failures.ended()


def _shown(probe: Probe) -> dict[str, Any]:
    return {
        "started_at": probe.start,
        "ended_at": probe.end,
        "exit_code": probe.exit_code,
        "output": probe.output,
    }


def _age_s(entry: Entry) -> float:
    return max(0.0, (time.time_ns() - (entry.started_at or 0)) / 1e9)
