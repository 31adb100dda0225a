"""Changing a container that is there: its limits and its restart policy, and its name.

A container's name is its id, and a task carries it: in its cgroup, in the runtime's state, in its
shim's title, in its directory. So a container is renamed only while it has no task. What is on disk
under the name is its log, which follows: what is left to do of that stands in the database.
"""

import json
import logging
import os
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from lighter.daemon.containers.records import ContainerRecords
from lighter.daemon.containers.request import check_restart
from lighter.daemon.events.log import EventLog, Telling
from lighter.daemon.metadata.containers import ContainerStore, check_whole
from lighter.daemon.metadata.db import Database
from lighter.daemon.oci.controls import read_controls
from lighter.daemon.oci.limits import Limits, resources
from lighter.daemon.restarts import policy as restart_policy
from lighter.daemon.restarts.policy import RestartPolicy
from lighter.daemon.tasks.service import TaskService
from lighter.daemon.types import Container
from lighter.proto import events, states
from lighter.proto.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from lighter.proto.faults import hit
from lighter.proto.names import check_name
from lighter.proto.paths import Root, cgroup_path

log = logging.getLogger("lighter.containers")

_LOGS = "rename-log:"  # in meta: namespace/old name -> new name
# What has a task whose limits can be changed.
_LIVE = (states.CREATED, states.RUNNING, states.PAUSED)
_NO_SWAP_LIMIT = Limits(memory_swap=-1)


class ContainerChanges:
    """Changes of recorded containers. `is_owner`: whether a name is taken; `has_writer`: whether
    files are being copied into that container.
    """

    def __init__(
        self,
        *,
        root: Root,
        db: Database,
        store: ContainerStore,
        records: ContainerRecords,
        tasks: TaskService,
        events_log: EventLog,
        is_owner: Callable[[str, str], bool],
        has_writer: Callable[[str, str], bool],
    ) -> None:
        self._root = root
        self._db = db
        self._store = store
        self._records = records
        self._tasks = tasks
        self._events = events_log
        self._is_owner = is_owner
        self._has_writer = has_writer

    async def limit(self, namespace: str, container_id: str, limits: Limits) -> None:
        """Give it other limits, at once if it runs, and for its next tasks.

        What is not named stays. Raises InvalidArgument, also where nothing would change, or
        FailedPrecondition with what the runtime says of limits that the kernel does not take; then
        nothing has changed.
        """
        container = self._store.get(namespace, container_id)
        check_whole("update", container)
        changes = resources(limits, read_controls(), _known(container))
        if limits == _NO_SWAP_LIMIT and not changes:
            return  # as it is already
        if not changes:
            raise InvalidArgument(
                f"update container {container_id}: nothing of it would change; "
                "where a limit can be taken away, -1 does that"
            )
        try:
            task = self._tasks.find(namespace, container_id)
        except NotFound:
            task = None
        if task is not None and task.state in _LIVE:
            await self._tasks.update(namespace, container_id, changes)
        hit("update.applied")
        container = self._store.get(namespace, container_id)
        spec = _with_limits(container, changes)
        self._records.change(replace(container, spec=spec))

    def set_restart(self, namespace: str, container_id: str, text: str) -> RestartPolicy:
        """Give it another restart policy. Raises InvalidArgument."""
        policy = restart_policy.parse(text)
        container = self._store.get(namespace, container_id)
        check_restart(policy, bool(container.options.get("auto_remove")))
        options = {**container.options, "restart": restart_policy.to_record(policy)}
        self._records.change(replace(container, options=options))
        return policy

    async def rename(self, namespace: str, container_id: str, name: str) -> None:
        """Give it another name; an ended task of it is forgotten.

        Raises AlreadyExists, and FailedPrecondition while it runs, while others name it, and for
        what a client of containerd's API has made, which knows it by its id; Unavailable while
        files are being copied into it.
        """
        check_name(name, "container")
        container = self._store.get(namespace, container_id)
        self._check_renamable(container)
        self._check_free(container)
        if self._is_owner(namespace, name):
            raise AlreadyExists(f"rename container {container_id}: {name} exists already")
        with suppress(NotFound):
            task = self._tasks.find(namespace, container_id)
            if task.exit is None:
                raise FailedPrecondition(
                    f"rename container {container_id}: it is {task.view().status}, and its cgroup, "
                    "its shim and the runtime's state carry the name; stop it first"
                )
            await self._tasks.delete(namespace, container_id)
        if self._tasks.exists(namespace, container_id) or self._is_owner(namespace, name):
            raise FailedPrecondition(f"rename container {container_id}: it has changed meanwhile")
        self._check_free(container)
        told = Telling(
            self._events, namespace, events.CONTAINER_RENAME, {"id": name, "old": container_id}
        )

        def also(tx: sqlite3.Connection) -> None:
            note = (f"{_LOGS}{namespace}/{container_id}", name)
            tx.execute("INSERT OR REPLACE INTO meta(key, value) VALUES(?, ?)", note)
            told(tx)

        self._store.rename(container, name, self._renamed_spec(container, name), also)
        hit("rename.committed")
        self._events.announce(*told.events)
        self.recover()

    def _check_free(self, container: Container) -> None:
        """Raises Unavailable while files are copied into it: the copy has mounted the root by the
        old name, and a task of the new name would mount it a second time.
        """
        if self._has_writer(container.namespace, container.id):
            raise Unavailable(f"rename container {container.id}: files are being copied into it")

    def _check_renamable(self, container: Container) -> None:
        if "spec_type" in container.options:
            raise FailedPrecondition(
                f"rename container {container.id}: it was made through containerd's API, "
                "whose client knows it by this id"
            )
        for stored in self._store.list_stored(container.namespace):
            other = stored.read()
            joined = [*(other.options.get("joins") or {}).values()]
            joined.append((other.options.get("network") or {}).get("container"))
            if container.id in joined:
                raise FailedPrecondition(
                    f"rename container {container.id}: container {other.id} shares its namespaces "
                    "by this name"
                )

    def _renamed_spec(self, container: Container, name: str) -> bytes:
        """The specification with the new name's cgroup, unless another was chosen for it."""
        spec = json.loads(container.spec)
        own = cgroup_path(self._root.instance, container.namespace, container.id)
        if (spec.get("linux") or {}).get("cgroupsPath") != own:
            return container.spec
        spec["linux"]["cgroupsPath"] = cgroup_path(self._root.instance, container.namespace, name)
        return json.dumps(spec).encode()

    def recover(self) -> None:
        """Let logs follow the containers that were renamed."""
        for row in self._db.rows(
            "SELECT key, value FROM meta WHERE substr(key, 1, ?) = ?", (len(_LOGS), _LOGS)
        ):
            namespace, _, old = row["key"].removeprefix(_LOGS).partition("/")
            try:
                os.rename(self._root.logs(namespace, old), self._root.logs(namespace, row["value"]))
            except FileNotFoundError:
                pass  # it had none, or that was done
            except OSError as err:
                log.warning("rename log of container %s: %s", row["value"], err)
            hit("rename.log-moved")
            with self._db.durable_transaction() as tx:
                tx.execute("DELETE FROM meta WHERE key = ?", (row["key"],))


def _known(container: Container) -> Mapping[str, Any]:
    """The resources that its spec has, which may be a client's. Raises InvalidArgument."""
    try:
        known = (json.loads(container.spec).get("linux") or {}).get("resources") or {}
        memory = known.get("memory") or {}
        numbers = [memory.get(name) or 0 for name in ("limit", "swap", "reservation")]
        if not all(isinstance(number, int) for number in numbers):
            raise TypeError
    except (ValueError, AttributeError, TypeError) as err:
        raise InvalidArgument(f"update container {container.id}: its spec is no OCI spec") from err
    return {"memory": memory}


def _with_limits(container: Container, changes: Mapping[str, Any]) -> bytes:
    """Its spec with these resources. Raises InvalidArgument."""
    try:
        spec = json.loads(container.spec)
        known = spec.setdefault("linux", {}).setdefault("resources", {})
        for part, values in changes.items():
            known[part] = {**(known.get(part) or {}), **values}
    except (ValueError, AttributeError, TypeError) as err:
        raise InvalidArgument(f"update container {container.id}: its spec is no OCI spec") from err
    return json.dumps(spec).encode()
