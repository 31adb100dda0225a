"""One manager's life: its start, what it keeps doing, its end.

The order of a start: limits and locks, directories, database and generation, recovery from rows,
the sockets of shims and clients, the spawner. From here on tasks are listed and shims adopted; then
all other modules are loaded and services made, containerd's API is served, READY.
"""

import asyncio
import contextlib
import gc
import grp
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

from lighter.daemon import files
from lighter.daemon.beginning import begin
from lighter.daemon.config.schema import Config
from lighter.daemon.core import Core
from lighter.daemon.entry import later
from lighter.daemon.entry.options import Installed
from lighter.daemon.events import numbering
from lighter.daemon.limits import may_trace, raise_descriptor_limit
from lighter.daemon.locks import take_lock
from lighter.daemon.metadata.db import Database
from lighter.daemon.metadata.mend import open_database
from lighter.daemon.notify import Notifier
from lighter.daemon.rpc.first_handlers import first_methods
from lighter.daemon.rpc.server import ClientServer
from lighter.daemon.spawning.placement import remove_empty
from lighter.daemon.spawning.spawner import Inherited
from lighter.daemon.tasks.supervisor import Supervisor
from lighter.daemon.wire.sockets import context
from lighter.proto.errors import (
    FailedPrecondition,
    InvalidArgument,
    LighterError,
    PermissionDenied,
)
from lighter.proto.faults import hit
from lighter.proto.paths import Root, State
from lighter.proto.socketpath import check_socket_path
from lighter.proto.version import VERSION

if TYPE_CHECKING:
    from lighter.daemon.grpc.server import GrpcServer
    from lighter.daemon.reload import Reloader
    from lighter.daemon.services import Services

log = logging.getLogger("lighter.app")

CLIENTS_FIRST_S = 0.05
CLIENTS_COME_S = 0.01  # ctl tries every 5 ms while it waits for a manager
SHIMS_FIRST_S = 0.1  # before the modules of ours that are left
SHIMS_BEFORE_GRPC_S = 0.5
LOOK_S = 0.005
ENDED_S = 1.0
LOADING_SWITCH_S = 0.0005

_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Manager:
    """One running manager. `run` returns when it was told to stop.

    `installed`: where the programs of this same version are.
    `reread` reads the configuration again, as it was read for `config`. `stands_in`: for which
    version this one serves, and why; "" when it is the one that was meant.
    """

    def __init__(
        self,
        config: Config,
        inherited: Inherited,
        notifier: Notifier,
        installed: Installed,
        reread: Callable[[], Config],
        stands_in: str = "",
    ) -> None:
        self._config = config
        self._inherited = inherited
        self._notifier = notifier
        self._installed = installed
        self._stands_in = stands_in
        self._reread = reread
        self._root = Root(config.root)
        self._state = State(config.state)
        self._stopping = asyncio.Event()
        self._hangup = asyncio.Event()

    async def run(self) -> None:
        """Start, serve until SIGTERM or SIGINT, and leave every container running."""
        if os.geteuid() != 0:
            raise PermissionDenied("start manager: it must run as root")
        raise_descriptor_limit()
        # What is made below gets its mode by name, directories above it this mask's.
        os.umask(0o022)
        self._check_directories()
        async with AsyncExitStack() as undo:
            instance = self._root.instance
            locks = [
                take_lock(path, instance=instance) for path in (self._root.lock, self._state.lock)
            ]
            undo.callback(remove_empty, instance)
            self._make_directories()
            files.sweep(self._state.dir)
            files.write_whole(self._state.pid_file, f"{os.getpid()}\n".encode(), 0o644)
            undo.callback(files.remove, self._state.pid_file)
            self._tell_ctl()
            hit("start.locked")
            db = open_database(self._root.database)
            undo.callback(db.close)
            generation = begin(db, self._root, self._state)
            undo.callback(numbering.end, db)
            log.info("manager starts version=%s generation=%d", VERSION, generation)
            if not may_trace():
                log.warning(
                    "without CAP_SYS_PTRACE a core of this manager has passwords of registries"
                )
            if self._stands_in:
                log.warning("stands in for version %s", self._stands_in)
            await self._serve(undo, db, generation, locks)

    def _remove_cgroups(self, core: Core) -> None:
        """Where no shim is to stay the last one, or its spawner, may still be ending."""
        stays = any(not entry.closed for entry in core.supervisor.entries.values())
        remove_empty(self._root.instance, 0.0 if stays else ENDED_S)

    def _tell_ctl(self) -> None:
        """Leave word which ctl is of this version, for one that is not (ctl/kept.py)."""
        if self._installed.ctl:
            files.write_whole(self._state.ctl, f"{self._installed.ctl}\n".encode(), 0o644)
        else:
            files.remove(self._state.ctl)

    async def _serve(
        self,
        undo: AsyncExitStack,
        db: Database,
        generation: int,
        locks: list[int],
    ) -> None:
        core = Core(self._config, db, generation, locks, self._inherited, self._installed.spawner)
        undo.callback(self._remove_cgroups, core)
        undo.callback(core.supervisor.close)
        server = ClientServer(
            generation,
            first_methods(core, lambda: self._health(core, server)),
            more_to_come=True,
        )
        # From here on things happen.
        found = core.recovery.run()
        hit("start.recovered")
        # Before clients and shims have gone nothing may hear that there is no spawner: what their
        # ends cut short would be taken for failures.
        undo.push_async_callback(core.spawner.close)
        # asyncio's way to handle one asks `inspect`, which has to wait until clients are answered.
        signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        undo.callback(signal.pthread_sigmask, signal.SIG_UNBLOCK, _HANDLED)
        zmq_context = context()
        undo.callback(zmq_context.destroy, 0)
        router = core.router
        router.hold_events()
        router.bind(zmq_context, check_socket_path(self._state.shims_socket))
        undo.callback(router.close)
        gid, mode = self._client_access()
        server.bind(zmq_context, check_socket_path(self._state.client_socket), gid, mode)
        undo.callback(server.close)
        hit("start.bound")
        log.info("manager answers tasks=%d socket=%s", found, self._state.client_socket)
        await _answered(server)
        self._handle_signals()
        core.supervisor.call_shims()
        await _adopted(core.supervisor, SHIMS_FIRST_S)
        core.spawner.start()
        services = await self._complete(core, server)
        from lighter.daemon import upkeep

        grpc_server = await self._serve_grpc(undo, services)
        # What is there now stays: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        gc.enable()
        self._notifier.ready()
        log.info("manager is ready")
        in_background = core.supervisor.in_background
        in_background(_reloads(self._hangup, services.reloader))  # which tells systemd READY too
        in_background(
            self._notifier.keep_telling(partial(_status, core.supervisor, self._stands_in))
        )
        for proxy in services.proxies:
            undo.push_async_callback(proxy.close)
        in_background(services.endings.recover(core.supervisor.entry))
        in_background(services.freezing.recover(core.supervisor.entry))
        in_background(upkeep.tidy(services))
        in_background(services.label_watch.run())
        in_background(
            upkeep.keep_listening(
                server.listen_again, router.listen_again, grpc_server.listen_again
            )
        )
        await self._stopping.wait()
        await upkeep.finish_removals(services.snapshotters)
        self._notifier.stopping()
        log.info("manager stops; containers go on")

    async def _complete(self, core: Core, server: ClientServer) -> "Services":
        """Make all other services, and take up what the manager before has left to them."""
        for module in later.put_off_until_now():
            later.load(module)
            await asyncio.sleep(0)  # whoever asks has not to wait for all of them
        await _loaded("lighter.daemon.app", "lighter.daemon.rpc.wiring", "lighter.daemon.upkeep")
        from lighter.daemon.app import build
        from lighter.daemon.rpc.wiring import native_methods

        services = build(core, self._reread, self._notifier)
        methods = native_methods(services)
        # Without a wait from here on: events come after what was found.
        core.supervisor.follow(services.followers, services.settler)
        for recover in (
            services.changes.recover,
            services.restarts.recover,
            services.by_hand.recover,
            services.health.recover,
            services.volumes.recover,
        ):
            try:
                recover()
            except Exception:  # no manager at all would be worse than what this leaves undone
                log.exception("take up what the manager before has left; going on")
        hit("start.completed")
        core.router.release_events()
        server.complete(methods)
        return services

    async def _serve_grpc(self, undo: AsyncExitStack, services: "Services") -> "GrpcServer":
        """Serve containerd's API too.

        grpc takes a tenth of a second to load, in which all else comes late: shims come back first,
        and `ctl` is answered meanwhile.
        """
        await _adopted(services.supervisor, SHIMS_BEFORE_GRPC_S)
        await _loaded("lighter.daemon.grpc.wiring")
        from lighter.daemon import upkeep
        from lighter.daemon.grpc import wiring
        from lighter.daemon.grpc.callcounts import CallCounts

        counts = CallCounts() if self._config.metrics_address else None
        traces = wiring.traces(services, os.environ)
        watchers = [watcher for watcher in (counts, traces) if watcher is not None]
        server = wiring.grpc_server(services, watchers)
        ours = self._state.grpc_socket
        address = self._config.address or ours
        await server.start(address)
        if not _same_file(address, ours):  # who has found the API there finds it there still
            await server.start(ours, for_root=True)
        undo.push_async_callback(server.close)
        services.event_log.begin_serving()
        in_background = services.supervisor.in_background
        if traces is not None:
            await _loaded("aiohttp")
            undo.push_async_callback(_ended, asyncio.ensure_future(traces.run()))
        if (tls := wiring.tls(self._config)) is not None:
            in_background(upkeep.keep_trying(partial(server.start_tcp, tls)))
        if counts is not None:
            await _loaded("lighter.daemon.metrics.server")
            page = wiring.metric_server(services, counts)
            undo.push_async_callback(page.close)
            in_background(upkeep.keep_trying(page.start))
        return server

    def _health(self, core: Core, server: ClientServer) -> "dict[str, object]":
        return {
            "status": "serving",
            "generation": core.generation,
            "clients": server.client_count,
            "shims": len(core.router.peers),
            "fds": core.budget.used,
            "dropped": server.dropped + core.router.dropped,
            "subscribers": core.event_log.subscribers,
            "coroutines": len(asyncio.all_tasks()),
            "stands_in": self._stands_in,
            "loss": core.db.loss,
        }

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._hangup.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)

    def _check_directories(self) -> None:
        """Whether its directories can be this instance's. They are there then, for the locks."""
        for socket in (self._state.shims_socket, self._state.client_socket):
            check_socket_path(socket)
        root = self._root.dir
        with contextlib.suppress(FileNotFoundError):
            foreign = [name for name in os.listdir(root) if name.startswith("io.containerd.")]
            if foreign:
                raise FailedPrecondition(
                    f"use root {root}: it holds containerd's data ({foreign[0]}); "
                    "choose another with --root, and see docs/migrate-from-containerd.md"
                )
        if os.path.realpath(root) == os.path.realpath(self._state.dir):
            raise InvalidArgument(
                f"use state {self._state.dir}: it is the root too, and must be another directory"
            )
        if os.path.lexists(Root(self._state.dir).database):
            raise FailedPrecondition(
                f"use state {self._state.dir}: it is the root of an instance, and must be another "
                "directory"
            )
        try:
            os.makedirs(root, 0o700, exist_ok=True)
            os.makedirs(self._state.dir, 0o711, exist_ok=True)
        except OSError as err:
            raise FailedPrecondition(f"make directory {err.filename}: {err.strerror}") from err

    def _make_directories(self) -> None:
        """The instance's directories with their modes; older ones are corrected."""
        root = self._root.dir
        try:
            # The two that an administrator may have put elsewhere with a link.
            files.make_directory(root, 0o700, follow=True)
            files.make_directory(self._state.dir, 0o711, follow=True)
            for path in (
                self._root.content,
                self._root.snapshots,
                root + "/exits",
                root + "/logs",
                self._state.tasks,
                self._state.runc,
                self._state.short_sockets,
            ):
                files.make_directory(path, 0o700)
        except OSError as err:
            raise FailedPrecondition(f"make directory {err.filename}: {err.strerror}") from err

    def _client_access(self) -> "tuple[int, int]":
        """(gid, mode) of the clients' socket: root alone, or root and the configured group."""
        group = self._config.group
        if not group:
            return -1, 0o600
        try:
            return grp.getgrnam(group).gr_gid, 0o660
        except KeyError as err:
            raise InvalidArgument(f"use group {group}: there is no such group") from err


def _status(supervisor: Supervisor, stands_in: str) -> str:
    """One line for `systemctl status`."""
    shims = [entry for entry in supervisor.entries.values() if entry.pidfd >= 0]
    adopted = sum(entry.peer is not None and entry.peer.version > 0 for entry in shims)
    instead = f"; stands in for version {stands_in}" if stands_in else ""
    return f"version {VERSION}, tasks adopted {adopted}/{len(shims)}{instead}"


async def _reloads(wanted: asyncio.Event, reloader: "Reloader") -> None:
    """For ever, as a signal asks for it."""
    while True:
        await wanted.wait()
        wanted.clear()
        try:
            await reloader.reload()
        except LighterError:
            pass  # the log says it
        except Exception:  # the next signal is to be heard
            log.exception("reload configuration")


def _same_file(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


async def _ended(task: "asyncio.Task[None]") -> None:
    """Cancel it, and wait until it has put its things away."""
    task.cancel()
    await asyncio.wait([task])


async def _loaded(*modules: str) -> None:
    """Load them and all that they need, in a thread: clients and shims are answered meanwhile.

    The event loop gets the interpreter whenever it has something to do, and not 5 ms later.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(LOADING_SWITCH_S)
    try:
        for module in modules:
            await asyncio.to_thread(importlib.import_module, module)
    finally:
        sys.setswitchinterval(before)


async def _answered(server: ClientServer) -> None:
    """Wait until the clients that waited for a manager have what they asked for, since anything
    else would slow that down; long enough for one more try to connect, and not for long.
    """
    await asyncio.sleep(CLIENTS_COME_S)
    await _until(lambda: not server.is_asked, CLIENTS_FIRST_S)


async def _adopted(supervisor: Supervisor, most_s: float) -> None:
    """Wait until no shim is missing any more; not for long, since a stopped one must not hold up
    the start.
    """
    await _until(
        lambda: all(entry.unknown_from is None for entry in supervisor.entries.values()), most_s
    )


async def _until(condition: Callable[[], bool], most_s: float) -> None:
    """Look every LOOK_S, and no longer than `most_s`."""
    for _look in range(int(most_s / LOOK_S)):
        if condition():
            return
        await asyncio.sleep(LOOK_S)
