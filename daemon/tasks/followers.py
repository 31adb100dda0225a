"""Who is there only once all services are: who hears of tasks' steps, and who frees lost tasks."""

import sqlite3
from collections.abc import Callable
from typing import Protocol

from lighter.daemon.tasks.bundle import Bundle
from lighter.daemon.tasks.entry import Entry


class Followers(Protocol):
    """Whom the supervisor tells of the tasks' steps, in the same turn of the loop."""

    def on_started(self, entry: Entry) -> None:
        """It runs."""

    def on_exit(self, entry: Entry) -> None:
        """Init has ended, which is recorded."""

    def on_closed(self, entry: Entry) -> None:
        """Nothing of it is left on the host."""

    def on_forgetting(self, tx: sqlite3.Connection, entry: Entry) -> None:
        """Its row goes with this transaction, which what has to follow may join."""

    def on_forgotten(self, entry: Entry) -> None:
        """It is deleted, or its create was undone."""


class Settler(Protocol):
    """Who sees to tasks whose shims are gone."""

    async def settle(self, entry: Entry) -> None:
        """Free what the shim held, then record how its task ended."""

    async def free(self, entry: Entry, bundle: Bundle) -> bool:
        """Free everything; True when processes of the container had to be ended.

        Raises Unavailable, with the reason, while something of it cannot be freed.
        """


Telling = Callable[[Followers], None]
