"""`--rm`: the manager removes such a container when its task is over."""

import logging
from collections.abc import Callable

from lighter.daemon.containers.service import ContainerService
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.supervisor import Supervisor
from lighter.proto.errors import LighterError, NotFound

log = logging.getLogger("lighter.containers")


class AutoRemoval:
    """Told by the supervisor of each task that is over and cleaned up.

    `goes_on`: whether another takes its place, as somebody restarts the container.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        containers: ContainerService,
        goes_on: Callable[[Entry], bool],
    ) -> None:
        self._goes_on = goes_on
        self._supervisor = supervisor
        self._containers = containers

    def on_closed(self, entry: Entry) -> None:
        if not entry.options.get("auto_remove"):
            return
        if entry.is_abandoned:
            return  # it never was a task: whoever asked for its create removes the container
        if self._goes_on(entry):
            entry.removed.set()  # who waits for that has waited for the end
        else:
            self._supervisor.in_background(self._remove(entry))

    async def _remove(self, entry: Entry) -> None:
        try:
            await self._containers.delete(entry.namespace, entry.id, force=True, volumes=True)
        except NotFound:
            pass  # the caller was faster
        except LighterError as err:
            log.warning("remove container %s: %s", entry.id, err)
        finally:
            entry.removed.set()
