"""What the manager knows about one task, in memory and in its rows.

The database is the truth; an Entry is the row plus what only a living manager has: the shim's
process and connection, and who waits. It becomes what its shim says. Lists are made from entries,
so that no stuck container can block one.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from lighter.daemon.procfs import is_stopped
from lighter.daemon.tasks import alive
from lighter.daemon.tasks.shims import Peer
from lighter.daemon.tasks.types import Exit, Task
from lighter.daemon.values import mutable
from lighter.proto import codec, events, states
from lighter.proto.errors import FailedPrecondition

log = logging.getLogger("lighter.tasks")

# Execs that a shim is asked for at a time: more wait for their turn. It takes 16 requests at once,
# and a kill has to get through.
EXECS_AT_ONCE = 8
SHOWN_AFTER_S = 2.0  # a process may take a while to be taken apart
PROBE_PREFIX = "lighter-health-"  # of the ids of execs that ask for a container's health

_STEPS = {
    events.CREATE: "create",
    events.START: "start",
    events.PAUSED: "pause",
    events.RESUMED: "resume",
    events.EXIT: "exit",
}
_AFTER = {
    "create": states.CREATED,
    "start": states.RUNNING,
    "pause": states.PAUSED,
    "resume": states.RUNNING,
    "exit": states.STOPPED,
}


def is_probe(exec_id: str) -> bool:
    """Whether the exec is one whose coming and going clients are not told of."""
    return exec_id.startswith(PROBE_PREFIX)


@mutable
class Exec:
    """A process that was added to a running container."""

    exec_id: str
    state: str
    terminal: bool
    created_at: int
    pid: int = 0
    started_at: int | None = None
    exit: Exit | None = None
    starting: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@mutable
class Entry:
    """One task. `state` is never `unknown`: that is how a silent shim is shown."""

    namespace: str
    id: str
    incarnation: str
    state: str
    image: str
    boot_id: str
    created_at: int
    terminal: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    pid: int = 0
    shim_pid: int = 0
    shim_start: int = 0
    pidfd: int = -1
    started_at: int | None = None
    exit: Exit | None = None
    closed: bool = False
    last_sequence: int = 0
    peer: Peer | None = None
    unknown_from: float | None = None
    unknown_reason: str = ""
    stuck: str = ""  # why what its dead shim held cannot be freed yet
    is_stuck: asyncio.Event = field(default_factory=asyncio.Event)
    readers: int = 0  # who want it to be still for as long as they read it (containers/freezing.py)
    stops: int = 0  # that wait for its end after their signal
    killed_at: float | None = None  # when SIGKILL was sent to init
    execs: dict[str, Exec] = field(default_factory=dict)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    hearsay: bool = False  # its row is of another incarnation: what it is, its shim will say
    orphan: bool = False  # found at a start, its create not done: nobody waits for it any more
    removed: asyncio.Event = field(default_factory=asyncio.Event)  # of one that removes itself
    cleaned: asyncio.Event = field(default_factory=asyncio.Event)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    exec_turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(EXECS_AT_ONCE))

    @property
    def key(self) -> tuple[str, str]:
        return self.namespace, self.id

    @property
    def from_hello(self) -> bool:
        """Whether its row was lost: the state is what its shim said, and events before are not."""
        return bool(self.options.get("from_hello"))

    @property
    def is_behind(self) -> bool:
        """Whether its row has missed steps that its shim will not tell again (see hearsay.py)."""
        return bool(self.options.get("behind"))

    def note_behind(self) -> None:
        """So that a later manager knows too; what its row was lost of is known by its hello."""
        if not self.from_hello:
            self.options = {**self.options, "behind": True}

    @property
    def is_abandoned(self) -> bool:
        """Whether its create is being undone, by this manager or the one before."""
        return bool(self.options.get("abandoned"))

    @property
    def is_task(self) -> bool:
        """Whether clients may know of it: not while it is created, nor when that is undone.

        What cannot be undone is shown, so that somebody does something about it.
        """
        return bool(self.stuck) or (self.state != states.CREATING and not self.is_abandoned)

    @property
    def what(self) -> str:
        return f"task {self.id}"

    def change(self, message: codec.Event) -> Exec | None:
        """Become what its shim says; returns the exec that this is about, if it is about one."""
        body = message.body
        if body.get("exec_id"):
            return self._change_exec(message)
        step = _STEPS.get(message.topic)
        if step is not None:
            try:
                self.state = states.advance(states.TASK, self.state, step, self.what)
            except FailedPrecondition as err:
                # A manager that was restored from an older copy of its data has missed steps;
                # the shim is the one who knows.
                log.warning("event of shim %s out of order: %s", self.incarnation, err)
                self.state = _AFTER[step]
        if message.topic == events.CREATE:
            self.pid = int(body["pid"])
        elif message.topic == events.START:
            self.started_at = message.timestamp
        elif message.topic == events.EXIT:
            self.exit = Exit(int(body["exit_status"]), int(body["exited_at"]), body["cause"])
        elif message.topic == events.CLOSED:
            self.closed = True
        return None

    def _change_exec(self, message: codec.Event) -> Exec:
        body = message.body
        exec_id = body["exec_id"]
        exec_ = self.execs.get(exec_id)
        if exec_ is None:
            exec_ = self.execs[exec_id] = Exec(exec_id, states.CREATING, False, message.timestamp)
        if message.topic == events.EXEC_STARTED:
            exec_.pid, exec_.started_at = int(body["pid"]), message.timestamp
            if exec_.state in (states.CREATING, states.ADDED):
                exec_.state = states.RUNNING
        elif message.topic == events.EXIT:
            exec_.exit = Exit(int(body["exit_status"]), int(body["exited_at"]), body["cause"])
            exec_.state = states.STOPPED
        return exec_

    def view(self, image: str = "", **more: Any) -> Task:
        """The task as it is listed; `image` and `more` are fields that others know."""
        status, reason = self.state, ""
        silent_s = -1.0 if self.unknown_from is None else time.monotonic() - self.unknown_from
        if self.stuck:
            status, reason = states.UNKNOWN, self.stuck
        elif self.state != states.STOPPED:
            if self.peer is not None and self.peer.version == 0:
                status, reason = states.UNKNOWN, self.unknown_reason
            elif silent_s >= 0:
                status, reason = states.UNKNOWN, f"{self.unknown_reason} for {silent_s:.0f} s"
            elif self.pidfd >= 0 and is_stopped(self.shim_pid):
                status, reason = states.UNKNOWN, "its shim is stopped (SIGSTOP)"
            elif self.peer is not None and self.peer.silent_since is not None:
                silent_s = time.monotonic() - self.peer.silent_since
                status, reason = states.UNKNOWN, f"its shim has not answered for {silent_s:.0f} s"
            elif self.killed_at is not None and time.monotonic() - self.killed_at > SHOWN_AFTER_S:
                reason = alive.why_alive(self.pid)
        return Task(
            namespace=self.namespace,
            id=self.id,
            pid=self.pid,
            status=status,
            image=self.image or image,
            exit_status=self.exit.exit_status if self.exit else None,
            exited_at=self.exit.exited_at if self.exit else None,
            cause=self.exit.cause if self.exit else "",
            reason=reason,
            created_at=self.created_at,
            started_at=self.started_at,
            **more,
        )
