"""What is said of tasks: plain typed objects, as those of lighter.daemon.types.

Apart from them, since a manager that starts needs these alone: to make such a class takes half a
millisecond, and there are many.
"""

from lighter.daemon.values import frozen


@frozen
class Exit:
    """How a process ended. `cause`: "" for a plain exit, lost-shim, reboot, oom or unknown."""

    exit_status: int
    exited_at: int
    cause: str = ""


@frozen
class Task:
    """A container's running side, as listed. `reason` says why a status is "unknown".

    `created_at` is the task's, `defined_at` the container's (0 when that is not recorded).
    `health`: "" without a check. `restarts`: since it was last started by hand; `restart_at`: when
    the next start is due, None when none is.
    """

    namespace: str
    id: str
    pid: int
    status: str
    image: str = ""
    exit_status: int | None = None
    exited_at: int | None = None
    cause: str = ""
    reason: str = ""
    created_at: int = 0
    started_at: int | None = None
    health: str = ""
    restarts: int = 0
    restart_at: int | None = None
    defined_at: int = 0
