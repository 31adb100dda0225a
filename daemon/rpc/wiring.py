"""Which method of proto/daemon_api gets which of the manager's services."""

import os
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING

from lighter.daemon.containers.stopping import StopAll
from lighter.daemon.images.commit import Committer
from lighter.daemon.images.convert import Converter
from lighter.daemon.images.exporter import Exporter
from lighter.daemon.images.inspection import Inspection
from lighter.daemon.plugins import SERVICES, plugins
from lighter.daemon.rpc import (
    archive_handlers,
    checkpoint_handlers,
    container_handlers,
    content_handlers,
    disk_handlers,
    file_handlers,
    handlers,
    image_handlers,
    metrics_handlers,
    network_handlers,
    oci_handlers,
    registry_handlers,
    restart_handlers,
    shim_handlers,
    snapshot_handlers,
    system_handlers,
    task_handlers,
    transfer_handlers,
    volume_handlers,
)
from lighter.daemon.rpc.methods import Method
from lighter.daemon.rpc.owners import guarded
from lighter.daemon.services import Services
from lighter.daemon.spawning.placement import remove_namespace

if TYPE_CHECKING:
    from lighter.daemon.storecheck.service import StoreCheck


def native_methods(s: Services) -> dict[str, Method]:
    """The methods of proto/daemon_api, by name, but for the first ones (first_handlers.py)."""
    methods = {
        **handlers.namespace_methods(s.namespaces, partial(remove_namespace, s.root.instance)),
        **metrics_handlers.metrics_methods(s.tasks),
        **container_handlers.container_methods(
            s.containers, s.by_hand, s.restarts, s.health, s.network_of
        ),
        **checkpoint_handlers.checkpoint_methods(s.checkpoints, s.by_hand),
        **restart_handlers.restart_methods(s.by_hand, s.changes),
        **task_handlers.task_methods(
            s.tasks,
            s.execs,
            s.containers,
            s.by_hand,
            s.checkpoints,
        ),
        **handlers.event_methods(s.event_log),
        **handlers.log_methods(s.root, s.tasks, s.containers, s.restarts.debts.is_owed),
        **image_handlers.image_methods(s.images, Inspection(s.images, s.content), s.mounted),
        **archive_handlers.archive_methods(
            s.images,
            Exporter(s.content, s.image_store, s.images.collector),
            Converter(s.content, s.image_store, s.images.collector, s.workers),
        ),
        **network_handlers.network_methods(s.network_catalog, s.live_networks, s.containers),
        **transfer_handlers.transfer_methods(s.puller, s.pusher),
        **file_handlers.file_methods(
            s.files,
            Committer(s.content, s.images, s.image_store, s.images.collector, s.snapshots),
            s.containers,
            s.freezing,
        ),
        **volume_handlers.volume_methods(s.volumes),
        **snapshot_handlers.snapshot_methods(s.snapshots, s.images),
        **registry_handlers.registry_methods(s.registries),
        **shim_handlers.shim_methods(s.supervisor, s.bundle_of, s.root),
        **content_handlers.content_methods(s.content, s.ingests, s.leases, s.images.collector),
        **content_handlers.lease_methods(s.leases, s.images.collector),
        **oci_handlers.oci_methods(s.host),
        **disk_handlers.disk_methods(s.housekeeping, _store_check(s)),
        **system_handlers.system_methods(
            s.reloader,
            StopAll(s.supervisor, s.containers, s.tasks, s.restarts, s.endings.all_released),
            s.db.accept_loss,
            lambda: plugins(s.snapshotters, SERVICES),
            lambda: {"manager": os.getpid(), "spawner": s.spawner.pid},
        ),
    }
    return guarded(methods)


def _store_check(s: Services) -> "Callable[[], StoreCheck]":
    """Made when it is first asked for: no start loads it."""

    @cache
    def make() -> "StoreCheck":
        from lighter.daemon.storecheck.service import StoreCheck

        return StoreCheck(s.root, s.db, s.event_log, s.content, s.images.collector, s.snapshotters)

    return make
