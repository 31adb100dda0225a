"""Tasks as they are listed: with what is known of their restarts and their health.

A container that waits to be started again is listed while it has no task too: between the end of
one and the start of the next its users look for it.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from lighter.daemon.health.service import HealthService
from lighter.daemon.restarts.service import Restarts
from lighter.daemon.restarts.store import Restart
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.service import TaskService
from lighter.daemon.types import Task
from lighter.proto import states
from lighter.proto.errors import NotFound


class TaskViews:
    """Reads memory and the database alone: no container can hold a list up."""

    def __init__(
        self,
        tasks: TaskService,
        restarts: Restarts,
        health: HealthService,
        born: Callable[[str, str], Mapping[str, tuple[str, int]]],
    ) -> None:
        """`born` gives image and time of making, of one container or, for "", of a namespace's."""
        self._tasks = tasks
        self._born = born
        self._restarts = restarts
        self._health = health

    def list(self, namespace: str) -> list[Task]:
        """All tasks of a namespace."""
        restarts = self._restarts.of_namespace(namespace)
        statuses = self._health.statuses(namespace)
        listed = [
            _seen(entry, restarts.get(entry.id), statuses)
            for entry in self._tasks.entries(namespace)
        ]
        there = {task.id for task in listed}
        listed += [
            _between(row)
            for row in restarts.values()
            if row.due_at is not None and row.id not in there
        ]
        born = self._born(namespace, "")
        return [_defined(task, born) for task in listed]

    def get(self, namespace: str, container_id: str) -> Task:
        """Raises NotFound."""
        row = self._restarts.get(namespace, container_id)
        try:
            entry = self._tasks.find(namespace, container_id)
        except NotFound:
            if row is None or row.due_at is None:
                raise
            task = _between(row)
        else:
            task = _seen(entry, row, self._health.statuses(namespace))
        return _defined(task, self._born(namespace, container_id))


def _seen(entry: Entry, row: Restart | None, statuses: dict[str, str]) -> Task:
    view = entry.view()
    health = statuses.get(entry.incarnation, "") if entry.exit is None else ""
    if row is None:
        return replace(view, health=health)
    return replace(view, health=health, restarts=row.count, restart_at=row.due_at)


def _defined(task: Task, born: Mapping[str, tuple[str, int]]) -> Task:
    """With what its container's record says."""
    image, at = born.get(task.id, (task.image, 0))
    return replace(task, image=task.image or image, defined_at=at)


def _between(row: Restart) -> Task:
    return Task(
        namespace=row.namespace,
        id=row.id,
        pid=0,
        status=states.STOPPED,
        exit_status=row.exit_status,
        exited_at=row.due_at,
        reason=row.error,
        restarts=row.count,
        restart_at=row.due_at,
    )
