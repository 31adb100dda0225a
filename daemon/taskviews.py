"""Tasks as they are listed: with what is known of their restarts and their health.

A container that waits to be started again is listed while it has no task too: between the end of
one and the start of the next its users look for it.
"""

from collections.abc import Mapping

from lighter.daemon.health.store import HealthStore
from lighter.daemon.metadata.db import Database
from lighter.daemon.restarts.store import Restart, RestartStore
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.supervisor import Supervisor
from lighter.daemon.tasks.types import Task
from lighter.proto import states
from lighter.proto.errors import NotFound

# What containers' records say, by id: image and time of making.
Born = Mapping[str, tuple[str, int]]


class TaskViews:
    """Reads memory and the database alone: no container can hold a list up."""

    def __init__(
        self,
        db: Database,
        supervisor: Supervisor,
        restarts: RestartStore,
        health: HealthStore,
    ) -> None:
        self._db = db
        self._supervisor = supervisor
        self._restarts = restarts
        self._health = health

    def list(self, namespace: str) -> list[Task]:
        """All tasks of a namespace."""
        restarts = self._restarts.of_namespace(namespace)
        statuses = self._statuses(namespace)
        born = self._born(namespace)
        listed = [
            _seen(entry, restarts.get(entry.id), statuses, born)
            for entry in self._supervisor.entries.values()
            if entry.namespace == namespace and entry.is_task
        ]
        there = {task.id for task in listed}
        return listed + [
            _between(row, born)
            for row in restarts.values()
            if row.due_at is not None and row.id not in there
        ]

    def get(self, namespace: str, container_id: str) -> Task:
        """Raises NotFound."""
        row = self._restarts.get(namespace, container_id)
        born = self._born(namespace, container_id)
        try:
            entry = self._supervisor.find(namespace, container_id)
        except NotFound:
            if row is None or row.due_at is None:
                raise
            return _between(row, born)
        return _seen(entry, row, self._statuses(namespace), born)

    def _born(self, namespace: str, container_id: str = "") -> Born:
        """Of one container, or of all in the namespace."""
        of = "SELECT id, image, created_at FROM containers WHERE namespace = ?"
        if container_id:
            rows = self._db.rows(f"{of} AND id = ?", (namespace, container_id))
        else:
            rows = self._db.rows(of, (namespace,))
        return {row["id"]: (row["image"], row["created_at"]) for row in rows}

    def _statuses(self, namespace: str) -> dict[str, str]:
        """Health by incarnation: what is remembered may be of the task before."""
        return dict(self._health.statuses(namespace).values())


def _seen(entry: Entry, row: Restart | None, statuses: dict[str, str], born: Born) -> Task:
    image, defined_at = born.get(entry.id, ("", 0))
    return entry.view(
        image=image,
        health=statuses.get(entry.incarnation, "") if entry.exit is None else "",
        restarts=row.count if row else 0,
        restart_at=row.due_at if row else None,
        defined_at=defined_at,
    )


def _between(row: Restart, born: Born) -> Task:
    image, defined_at = born.get(row.id, ("", 0))
    return Task(
        namespace=row.namespace,
        id=row.id,
        pid=0,
        status=states.STOPPED,
        image=image,
        exit_status=row.exit_status,
        exited_at=row.due_at,
        reason=row.error,
        restarts=row.count,
        restart_at=row.due_at,
        defined_at=defined_at,
    )
