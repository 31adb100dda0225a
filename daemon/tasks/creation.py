"""Creating a task: row, bundle, claim, fork, and the way back from each of them.

The row comes first, so that whatever a dying manager leaves has an owner; the claim comes last
before the fork, so that an order which outlives its manager can be withdrawn.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from lighter.daemon.metadata.db import Database
from lighter.daemon.spawning.spawner import Spawner
from lighter.daemon.tasks.bundle import Bundle
from lighter.daemon.tasks.calling import (
    PLAIN,
    Calling,
    check_alone,
    check_apart,
    check_placed,
    make_root,
    place,
    runtime_root,
)
from lighter.daemon.tasks.cgrouplock import CgroupLock
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.logsending import order_of
from lighter.daemon.tasks.order import create_order
from lighter.daemon.tasks.reach import CLOSED_S, RETURN_S, cleaned_or_stuck, find_process, kill_shim
from lighter.daemon.tasks.runtimes import Runtimes
from lighter.daemon.tasks.shims import MARGIN_S, ShimRouter
from lighter.daemon.tasks.store import TaskStore
from lighter.daemon.tasks.supervisor import Supervisor
from lighter.daemon.turns import Turns
from lighter.daemon.types import Container, Mount, RuntimeOptions
from lighter.proto import states
from lighter.proto.errors import (
    AlreadyExists,
    DeadlineExceeded,
    LighterError,
    ResourceExhausted,
    Unavailable,
    unforeseen,
)
from lighter.proto.faults import hit
from lighter.proto.paths import Root, State

log = logging.getLogger("lighter.tasks")

BEHIND_S = 0.5
_POLL_S = 0.05
AT_ONCE = 8  # creates under way


class TaskCreator:
    """Makes tasks for containers."""

    def __init__(
        self,
        *,
        root: Root,
        state: State,
        db: Database,
        store: TaskStore,
        supervisor: Supervisor,
        router: ShimRouter,
        spawner: Spawner,
        bundle_of: Callable[[str, str], Bundle],
        generation: int,
        boot_id: str,
        runtimes: Runtimes,
        has_room: Callable[[], bool],
        most_tasks: Callable[[], int],
        runtime_s: float,
        cgroup_lock: CgroupLock,
    ) -> None:
        self._runtime_s = runtime_s
        # Of the runtime's create and of what undoes it, each ended when it hangs.
        self._create_s = 2 * (runtime_s + MARGIN_S)
        self._root = root
        self._state = state
        self._db = db
        self._store = store
        self._supervisor = supervisor
        self._router = router
        self._spawner = spawner
        self._bundle_of = bundle_of
        self._generation = generation
        self._boot_id = boot_id
        self._runtimes = runtimes
        self._has_room = has_room
        self._most_tasks = most_tasks
        self._cgroup_lock = cgroup_lock
        self._turns = Turns(AT_ONCE)

    async def create(
        self,
        container: Container,
        mounts: tuple[Mount, ...],
        terminal: bool,
        stdio: Mapping[str, Any],
        options: RuntimeOptions = PLAIN,
        network: str = "",
    ) -> int:
        """Fork a shim that makes the container; returns init's pid. It runs nothing yet.

        `network` is the key of what it is attached to, which ends with the task.

        Raises AlreadyExists, ResourceExhausted when descriptors run out, NotFound for the runtime,
        or what the shim reports (FailedPrecondition with the runtime's last words).
        """
        namespace, id_ = container.namespace, container.id
        if (namespace, id_) in self._supervisor.entries:
            raise AlreadyExists(f"create task {id_}: it exists already")
        if self._bundle_of(namespace, id_).exists():
            raise AlreadyExists(
                f"create task {id_}: the manager before left its directory, which is not cleaned "
                "up yet or belongs to a shim that has not connected"
            )
        if not self._has_room():
            raise ResourceExhausted(
                f"create task {id_}: the manager has used 80 % of its file descriptors "
                "(RLIMIT_NOFILE)"
            )
        self._check_shims(id_)
        calling, spec = self._calling(container, options)
        # Paths of the client's, for whoever attaches later; /proc/... is only the caller's own.
        named = [str(stdio.get(name, "")) for name in ("stdin", "stdout", "stderr")]
        lasting = any(named) and not any(path.startswith("/proc/") for path in named)
        entry = Entry(
            namespace=namespace,
            id=id_,
            incarnation=secrets.token_hex(8),
            state=states.CREATING,
            image=container.image,
            boot_id=self._boot_id,
            created_at=time.time_ns(),
            terminal=terminal,
            options={
                "image": container.image,
                "runtime": calling.runtime,
                "auto_remove": bool(container.options.get("auto_remove")),
                **({"cgroup": calling.cgroup} if "cgroup" in container.options else {}),
                **({"stdio": named} if lasting else {}),
                **({"network": network} if network else {}),
            },
        )
        with self._db.fast_transaction() as tx:
            self._store.save(tx, entry)
        self._supervisor.add(entry)
        async with entry.lock:
            try:
                hit("create.row-committed")
                async with self._turns.take():
                    return await self._create(entry, container, mounts, stdio, calling, spec)
            except BaseException:
                # Shielded: a caller that gives up does not leave half a task behind.
                await asyncio.shield(self._undo_create(entry))
                raise

    def _check_shims(self, id_: str) -> None:
        """Whether there may be one more; a task that has ended for good has none."""
        entries, most = self._supervisor.entries.values(), self._most_tasks()
        if len(entries) >= most and sum(not entry.cleaned.is_set() for entry in entries) >= most:
            raise ResourceExhausted(
                f"create task {id_}: {most} tasks have a shim, for more the manager's file "
                "descriptors are too few (RLIMIT_NOFILE)"
            )

    async def _create(
        self,
        entry: Entry,
        container: Container,
        mounts: tuple[Mount, ...],
        stdio: Mapping[str, Any],
        calling: Calling,
        spec: bytes,
    ) -> int:
        self._cgroup_lock.take_soon()
        bundle = self._bundle_of(entry.namespace, entry.id)
        log = self._log_settings(container)
        bundle.write(spec, entry.incarnation, log["dir"] if log else "")
        if "id_root" in container.options:
            bundle.open_to(int(container.options["id_root"][1]))
        if calling.options.root or calling.options.systemd_cgroup:
            bundle.write_runtime(
                {"root": calling.root, "cgroup": calling.cgroup, "flags": calling.flags}
            )
        hit("create.bundle-made")
        ident = self._router.next_ident()
        order = create_order(
            bundle,
            self._state,
            container,
            mounts,
            instance=self._root.instance,
            incarnation=entry.incarnation,
            generation=self._generation,
            ident=ident,
            terminal=entry.terminal,
            calling=calling,
            runtime_s=self._runtime_s,
            log=log,
            stdio=stdio,
        )
        answer = self._router.expect_created(ident)
        try:
            child = await self._spawner.fork_shim(order)
            self._supervisor.watch_shim(entry, child.pid, child.start, child.pidfd)
            hit("create.shim-forked")
            with bundle.room_for_runtime():
                async with asyncio.timeout(self._create_s):
                    created = await self._answer_or_end(entry, answer)
        except TimeoutError as err:
            raise DeadlineExceeded(
                f"create task {entry.id}: its shim did not answer in {self._create_s:g} s"
            ) from err
        finally:
            answer.cancel()
            bundle.remove_console(order["console"])
        hit("create.done")
        # The event of it came before the answer.
        if entry.state == states.CREATING and entry.peer is not None and entry.peer.stalled:
            raise entry.peer.stalled_by(f"create {entry.what}")
        check_placed(int(created["pid"]), calling.cgroup, entry.id)
        return int(created["pid"])

    async def _answer_or_end(self, entry: Entry, answer: "asyncio.Future[Any]") -> Any:
        """The shim's answer, or Unavailable when its process ends without one."""
        ends = [asyncio.ensure_future(end.wait()) for end in (entry.cleaned, entry.is_stuck)]
        try:
            await asyncio.wait((answer, *ends), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                # A shim that failed before it was welcome sends its events first: the answer, which
                # knows the cause, stands right behind them.
                await asyncio.wait((answer,), timeout=BEHIND_S)
            if answer.done():
                return answer.result()
            why = f"; {entry.stuck}" if entry.stuck else ""
            raise Unavailable(f"create task {entry.id}: its shim died{why}")
        finally:
            for end in ends:
                end.cancel()

    async def _undo_create(self, entry: Entry) -> None:
        """Undo a failed create: remove shim, bundle and row."""
        bundle = self._bundle_of(entry.namespace, entry.id)
        entry.options = {**entry.options, "abandoned": True}
        withdrawn = bundle.withdraw(entry.incarnation)
        if not withdrawn and not entry.cleaned.is_set():
            self._find_shim(entry, bundle)
            try:
                # Noted before the act: a manager that finds it goes on with the undoing.
                with self._db.fast_transaction() as tx:
                    self._store.save(tx, entry)
                async with asyncio.timeout(CLOSED_S):
                    await self._end_shim(entry)
            except (LighterError, TimeoutError) as err:
                # Where nothing can be noted, nothing that the shim says can be either.
                log.warning("undo create of %s: %s; ending its shim", entry.what, err or "too long")
                kill_shim(entry)
                await cleaned_or_stuck(entry, CLOSED_S)
            if not entry.cleaned.is_set():
                entry.orphan = True  # who settles it forgets it then
                return
        try:
            self._supervisor.forget(entry)
        except Exception as err:  # it would be in the making for ever
            why = unforeseen(err)
            log.warning("undo create of %s: %s; trying on", entry.what, err, exc_info=why)
            entry.orphan = True
            self._supervisor.in_background(self._supervisor.settle(entry))

    async def _end_shim(self, entry: Entry) -> None:
        """Have the shim undo what it made; it takes no request before init is there.

        Raises LighterError when what it tells cannot be recorded.
        """
        while not (entry.cleaned.is_set() or entry.stuck):
            if entry.peer is not None and entry.peer.stalled:
                raise entry.peer.stalled_by("record its events")
            if entry.peer is not None and entry.pid:
                with contextlib.suppress(LighterError):
                    await entry.peer.call("end", timeout_s=RETURN_S)
                await cleaned_or_stuck(entry, CLOSED_S)
            else:
                await asyncio.sleep(_POLL_S)

    def _find_shim(self, entry: Entry, bundle: Bundle) -> None:
        """A shim whose fork was never answered has claimed the task: watch it from now on."""
        if entry.pidfd >= 0:
            return
        shim = None
        with contextlib.suppress(LighterError, OSError):  # it is settled when they can be read
            shim = find_process(bundle.shim_record() or {})
        if shim is None:
            self._supervisor.in_background(self._supervisor.settle(entry))
        else:
            self._supervisor.watch_shim(entry, shim.pid, shim.start, shim.pidfd)

    def _calling(self, container: Container, options: RuntimeOptions) -> tuple[Calling, bytes]:
        """How its runtime is called, and the spec that it gets."""
        namespace, id_ = container.namespace, container.id
        if options.binary_name:
            runtime = self._runtimes.find_program(options.binary_name)
        else:
            runtime = self._runtimes.find(container.runtime)
        is_hosts = self._runtimes.is_hosts_runc(runtime)
        where = runtime_root(self._state, namespace, options)
        if options.root:
            make_root(where, id_)
        if "cgroup" not in container.options:  # a spec of our own making
            path = check_apart(self._root, container, self._supervisor.entries.values())
            return Calling(runtime, where, path, options, is_hosts), container.spec
        path, spec = place(self._root, container, options.systemd_cgroup)
        check_alone(self._root, path, id_, self._supervisor.entries.values())
        return Calling(runtime, where, path, options, is_hosts), spec

    def _log_settings(self, container: Container) -> dict[str, Any] | None:
        log = container.options.get("log") or {}
        if log.get("driver", "none") == "none":
            return None
        return {
            "dir": self._root.logs(container.namespace, container.id),
            "max_bytes": int(log["max_size"]),
            "max_files": int(log["max_file"]),
            **({"send": order_of(container, log["send"])} if log.get("send") else {}),
        }
