"""The wiring of what a manager needs before it can answer: its tasks, their shims, its database.

A start is a gap for every client, and most of it was the loading of modules. So what is here is
all that lists tasks and adopts shims, and it imports nothing else: tests/unit/daemon/loaded.txt
names what a start may load by then. app.py wires the rest on top of it, once clients are served.
"""

import os
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from lighter.daemon.config.schema import Config
from lighter.daemon.events.log import EventLog
from lighter.daemon.health.store import HealthStore
from lighter.daemon.limits import DescriptorBudget
from lighter.daemon.metadata.db import Database
from lighter.daemon.procfs import read_boot_id
from lighter.daemon.restarts.store import RestartStore
from lighter.daemon.spawning.placement import Placement
from lighter.daemon.spawning.spawner import Inherited, Spawner
from lighter.daemon.tasks.bundle import Bundle
from lighter.daemon.tasks.hearsay import Hearsay
from lighter.daemon.tasks.recovery import Recovery
from lighter.daemon.tasks.shims import ShimRouter
from lighter.daemon.tasks.store import TaskStore
from lighter.daemon.tasks.supervisor import Supervisor
from lighter.daemon.taskviews import TaskViews
from lighter.proto.paths import Root, State

if TYPE_CHECKING:
    from lighter.daemon.network.attachments import Attachments


class Core:
    """One manager, as far as it is there from the first moment."""

    def __init__(
        self,
        config: Config,
        db: Database,
        generation: int,
        locks: Sequence[int],
        inherited: Inherited,
        spawner_argv: Sequence[str],
    ) -> None:
        """Nothing runs yet but reads of the database."""
        self.config = config
        self.root = root = Root(config.root)
        self.state = state = State(config.state)
        self.db = db
        self.generation = generation
        self.boot_id = read_boot_id()
        self.budget = DescriptorBudget()
        self.spawner = Spawner(
            root.instance,
            state,
            inherited,
            locks,
            spawner_argv,
            Placement.of_this_process(root.instance, generation),
        )
        self.event_log = EventLog(db)
        self.task_store = TaskStore(db)
        self.restart_store = RestartStore(db, f"{state.dir}/restarts.json")
        self.health_store = HealthStore(db)
        self.bundle_of: Callable[[str, str], Bundle] = partial(Bundle, state, root)
        self.supervisor = Supervisor(db, self.task_store, self.event_log, self.bundle_of)
        self.router = self.supervisor.router = ShimRouter(
            generation,
            self.supervisor.on_hello,
            self.supervisor.on_event,
            runtime_s=config.runc_timeout_s,
        )
        self.recovery = Recovery(
            db=db,
            store=self.task_store,
            supervisor=self.supervisor,
            bundle_of=self.bundle_of,
            instance=root.instance,
            state=state,
            boot_id=self.boot_id,
        )
        self.supervisor.on_stranger = self.recovery.on_stranger
        self.supervisor.on_behind = Hearsay(self.supervisor, self.task_store).on_behind
        self.views = TaskViews(db, self.supervisor, self.restart_store, self.health_store)
        self._had_networks = os.path.isdir(root.networks) and any(os.scandir(root.networks))

    @cached_property
    def attachments(self) -> "Attachments":
        """The networks of tasks. Made, with its modules, when it is first asked for: where no task
        has a network, that is after the start.
        """
        from lighter.daemon.network.attachments import Attachments
        from lighter.daemon.network.chain import Chain
        from lighter.daemon.network.netns import NetworkNamespaces
        from lighter.daemon.network.plugin import search_path
        from lighter.daemon.network.records import Records
        from lighter.daemon.spawning.workers import Workers

        config = self.config
        attachments = Attachments(
            instance=self.root.instance,
            boot_id=self.boot_id,
            chain=Chain(search_path(config.network_bin_dir, os.environ), config.network_timeout_s),
            store=Records(self.root, self.state),
            netns=NetworkNamespaces(self.state, Workers(self.spawner)),
            bundle_of=self.bundle_of,
        )
        attachments.load()
        return attachments

    def network_of(self, namespace: str, container_id: str) -> dict[str, Any]:
        """What lists and inspections show of a container's networks."""
        if not self._had_networks and "attachments" not in vars(self):
            return {"networks": [], "ports": []}
        return self.attachments.view(namespace, container_id)
