"""Reading the configuration again while the manager serves: `ctl system reload`, or SIGHUP.

A file that cannot be read, or says what it must not, changes nothing. What a running manager cannot
take over is named, and waits for the next start.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from lighter.daemon import journal
from lighter.daemon.config.schema import Config, key_of
from lighter.daemon.content.scheduler import Scheduler
from lighter.daemon.looks import Looks
from lighter.daemon.notify import Notifier
from lighter.daemon.registry.registries import Registries
from lighter.proto.errors import LighterError

log = logging.getLogger("lighter.reload")

_GC = ("gc_pause_threshold", "gc_deletion_threshold", "gc_mutation_threshold", "gc_schedule_delay")
READ_S = 30.0
_AT_ONCE = ("level", "registry", *_GC)


@dataclass(frozen=True)
class Reloaded:
    """What came of it: "key: old -> new" of what is in force now, and keys that need a start."""

    changed: tuple[str, ...]
    at_next_start: tuple[str, ...]


class Reloader:
    """`running` is the configuration in force; `read` is how the manager read it at its start."""

    def __init__(
        self,
        running: Config,
        read: Callable[[], Config],
        notifier: Notifier,
        registries: Registries,
    ) -> None:
        self._running = running
        self._read = read
        self._registries = registries
        self._notifier = notifier
        self.scheduler: Scheduler | None = None
        self._looks = Looks(READ_S)
        self._turn = asyncio.Lock()

    @property
    def running(self) -> Config:
        """The configuration in force."""
        return self._running

    async def reload(self) -> Reloaded:
        """Take over what can be, one after the other.

        Raises InvalidArgument naming file, and line or key; DeadlineExceeded for a file that
        cannot be read within READ_S.
        """
        async with self._turn:
            self._notifier.reloading()
            try:
                # In a thread: files may be many, large, and on what hangs.
                return self._take_over(await self._looks.at("reload configuration", self._read))
            except LighterError as err:
                log.error("reload: %s; the configuration stays as it was", err.message)
                raise
            finally:
                self._notifier.reloaded()

    def _take_over(self, new: Config) -> Reloaded:
        changed, later = [], []
        for name in (item.name for item in fields(Config)):
            old_value, new_value = getattr(self._running, name), getattr(new, name)
            if old_value == new_value:
                continue
            if name == "registry":
                changed.append(f"{key_of(name)} and what stands for it")  # it may hold secrets
            elif name in _AT_ONCE:
                changed.append(f"{key_of(name)}: {old_value} -> {new_value}")
            else:
                later.append(key_of(name))
                log.warning("reload: %s has changed, which the next start takes over", key_of(name))
        journal.configure(new.level)
        self._registries.settings = new.registry
        if self.scheduler is not None:
            self.scheduler.schedule = new.gc
        taken = {name: getattr(new, name) for name in _AT_ONCE}
        self._running = replace(self._running, **taken)
        log.info("configuration is reloaded: %s", ", ".join(changed) or "nothing changed")
        return Reloaded(tuple(changed), tuple(later))
