"""`--rm`: the manager removes such a container when its task is over."""

import logging

from lighter.daemon.containers.service import ContainerService
from lighter.daemon.tasks.entry import Entry
from lighter.daemon.tasks.supervisor import Supervisor
from lighter.proto.errors import LighterError, NotFound

log = logging.getLogger("lighter.containers")


class AutoRemoval:
    """Told by the supervisor of each task that is over and cleaned up."""

    def __init__(self, supervisor: Supervisor, containers: ContainerService) -> None:
        self._supervisor = supervisor
        self._containers = containers

    def on_closed(self, entry: Entry) -> None:
        if entry.options.get("auto_remove"):
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
