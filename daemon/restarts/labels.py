"""containerd's restart labels, by which its clients have a container's task kept up or down.

    containerd.io/restart.status               what its task is to be: running or stopped
    containerd.io/restart.policy               always (when empty), on-failure[:n], unless-stopped
    containerd.io/restart.count                restarts so far, counted by the manager
    containerd.io/restart.explicitly-stopped   true: somebody has stopped it
    containerd.io/restart.loguri               where a task that is started again writes its output

They are read as containerd's restart monitor does; only what it does every ten seconds is done as
soon as a task has ended.
"""

from collections.abc import Mapping

from lighter.daemon.restarts.policy import ALWAYS, RestartPolicy, parse, retries_of
from lighter.proto.errors import InvalidArgument

STATUS = "containerd.io/restart.status"
POLICY = "containerd.io/restart.policy"
COUNT = "containerd.io/restart.count"
EXPLICITLY_STOPPED = "containerd.io/restart.explicitly-stopped"
LOG_URI = "containerd.io/restart.loguri"

RUNNING = "running"
STOPPED = "stopped"
# What Go's strconv.ParseBool takes for true.
_TRUE = ("1", "t", "T", "true", "TRUE", "True")


def policy(labels: Mapping[str, str]) -> RestartPolicy:
    """What they ask for. Raises InvalidArgument for a policy or count that cannot be read."""
    if labels.get(STATUS) != RUNNING:
        return RestartPolicy()
    return parse(labels.get(POLICY) or ALWAYS)


def count(labels: Mapping[str, str]) -> int:
    """Raises InvalidArgument for what is no number."""
    text = labels.get(COUNT) or "0"
    number = retries_of(text)
    if number is None:
        raise InvalidArgument(f"read label {COUNT}: {text[:40]!r} is no number of restarts")
    return number


def is_stopped(labels: Mapping[str, str]) -> bool:
    """Whether a client says that it has stopped the container."""
    return labels.get(EXPLICITLY_STOPPED) in _TRUE
