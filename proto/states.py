"""Life cycles as tables: of a task, of an exec, and of a shim that a new manager finds.

What a step leads to stands here, and `advance` refuses a step that is not in the table: then
nothing has changed. States are compared elsewhere to choose what is to be done, and for the words
of containerd's that refuse it.
"""

from lighter.proto.errors import FailedPrecondition

CREATING = "creating"  # the intent is recorded, runc create has not returned; not shown as a task
CREATED = "created"
RUNNING = "running"
PAUSED = "paused"
STOPPED = "stopped"
DELETED = "deleted"
ADDED = "added"  # an exec that is recorded and may be started; shown to clients as created
UNKNOWN = "unknown"  # shown for a shim that does not answer; never stored

TASK: dict[tuple[str, str], str] = {
    (CREATING, "create"): CREATED,
    (CREATING, "exit"): STOPPED,
    (CREATING, "fail"): DELETED,
    (CREATED, "start"): RUNNING,
    (CREATED, "exit"): STOPPED,
    (CREATED, "kill"): CREATED,
    (CREATED, "attach"): CREATED,
    (CREATED, "update"): CREATED,
    (CREATED, "delete"): CREATED,  # the shim ends init first; the exit follows
    (RUNNING, "pause"): PAUSED,
    (RUNNING, "exit"): STOPPED,
    (RUNNING, "kill"): RUNNING,
    (RUNNING, "attach"): RUNNING,
    (RUNNING, "exec"): RUNNING,
    (RUNNING, "update"): RUNNING,
    (RUNNING, "checkpoint"): RUNNING,  # one that ends with it is heard of by its exit
    (PAUSED, "resume"): RUNNING,
    (PAUSED, "checkpoint"): PAUSED,
    (PAUSED, "exit"): STOPPED,
    (PAUSED, "kill"): PAUSED,
    (PAUSED, "attach"): PAUSED,
    (PAUSED, "update"): PAUSED,
    (STOPPED, "delete"): DELETED,
}

OF_TASK = frozenset(state for state, _step in TASK)

EXEC: dict[tuple[str, str], str] = {
    (ADDED, "start"): RUNNING,
    (ADDED, "exit"): STOPPED,
    (ADDED, "delete"): DELETED,
    (CREATING, "start"): RUNNING,
    (CREATING, "exit"): STOPPED,
    (CREATING, "fail"): DELETED,
    (RUNNING, "exit"): STOPPED,
    (RUNNING, "kill"): RUNNING,
    (RUNNING, "attach"): RUNNING,
    (STOPPED, "delete"): DELETED,
}


def advance(table: dict[tuple[str, str], str], state: str, step: str, what: str) -> str:
    """The state after `step`. Raises FailedPrecondition("<step> <what>: it is <state>")."""
    following = table.get((state, step))
    if following is None:
        raise FailedPrecondition(f"{step} {what}: it is {state}")
    return following


# What a manager finds, and what it does. Row: what the database says. Shim: `never` – the claim
# could be withdrawn, so no shim is or will be; `silent` – its process lives, it has not said
# hello; `hello` – it has; `dead` – its process is gone; `reboot` – it belongs to an earlier boot.
# Record: whether an exit record is on disk.
NONE, LIVE, TOMBSTONE = "none", "live", "tombstone"
NEVER, SILENT, HELLO, DEAD, REBOOT = "never", "silent", "hello", "dead", "reboot"

ADOPTION: dict[tuple[str, str, bool], str] = {
    # a create that was under way
    (CREATING, NEVER, False): "forget",
    (CREATING, NEVER, True): "forget",
    (CREATING, SILENT, False): "wait",
    (CREATING, SILENT, True): "wait",
    (CREATING, HELLO, False): "adopt",
    (CREATING, HELLO, True): "adopt",
    (CREATING, DEAD, False): "forget",
    (CREATING, DEAD, True): "settle-record",
    (CREATING, REBOOT, False): "forget",
    (CREATING, REBOOT, True): "settle-record",
    # created, running or paused
    (LIVE, NEVER, False): "settle-lost",
    (LIVE, NEVER, True): "settle-record",
    (LIVE, SILENT, False): "wait",
    (LIVE, SILENT, True): "wait",
    (LIVE, HELLO, False): "adopt",
    (LIVE, HELLO, True): "adopt",
    (LIVE, DEAD, False): "settle-lost",
    (LIVE, DEAD, True): "settle-record",
    (LIVE, REBOOT, False): "settle-reboot",
    (LIVE, REBOOT, True): "settle-record",
    # stopped: only the cleaning up may be unfinished
    (STOPPED, NEVER, False): "close",
    (STOPPED, NEVER, True): "close",
    (STOPPED, SILENT, False): "wait",
    (STOPPED, SILENT, True): "wait",
    (STOPPED, HELLO, False): "adopt",
    (STOPPED, HELLO, True): "adopt",
    (STOPPED, DEAD, False): "close",
    (STOPPED, DEAD, True): "close",
    (STOPPED, REBOOT, False): "close",
    (STOPPED, REBOOT, True): "close",
    # no row: the database was lost or restored from an older copy
    (NONE, NEVER, False): "forget",
    (NONE, NEVER, True): "forget",
    (NONE, SILENT, False): "wait",
    (NONE, SILENT, True): "wait",
    (NONE, HELLO, False): "adopt-row",
    (NONE, HELLO, True): "adopt-row",
    (NONE, DEAD, False): "forget",
    (NONE, DEAD, True): "forget",
    (NONE, REBOOT, False): "forget",
    (NONE, REBOOT, True): "forget",
    # its delete was accepted
    (TOMBSTONE, NEVER, False): "forget",
    (TOMBSTONE, NEVER, True): "forget",
    (TOMBSTONE, SILENT, False): "kill",
    (TOMBSTONE, SILENT, True): "kill",
    (TOMBSTONE, HELLO, False): "kill",
    (TOMBSTONE, HELLO, True): "kill",
    (TOMBSTONE, DEAD, False): "forget",
    (TOMBSTONE, DEAD, True): "forget",
    (TOMBSTONE, REBOOT, False): "forget",
    (TOMBSTONE, REBOOT, True): "forget",
}

_ROW = {CREATED: LIVE, RUNNING: LIVE, PAUSED: LIVE, STOPPED: STOPPED, CREATING: CREATING}


def adoption_step(row_state: str, shim: str, record: bool) -> str:
    """What to do with a task found at start, by row state (or none, tombstone), shim, record."""
    return ADOPTION[_ROW.get(row_state, row_state), shim, record]
