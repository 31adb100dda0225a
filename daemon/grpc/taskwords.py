"""containerd's words for what a task, its process or its runtime refuses."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from lighter.daemon.tasks.entry import Entry, Exec
from lighter.daemon.tasks.runtimes import NAMES
from lighter.proto import states
from lighter.proto.errors import FailedPrecondition, LighterError, Unknown

# How a shim of the release before, which gives no details, passes on a runtime's last words.
_RUNTIME_SAID = re.compile(r"run container process: runc [a-z]+: (.*)", re.DOTALL)

# What containerd's runtime says when a step does not fit the state; its code is Unknown there.
_REFUSALS = {
    "checkpoint": "cannot checkpoint a {state} container",
    "exec": "cannot exec in a {state} state",
    "pause": "cannot pause a {state} container",
    "resume": "cannot resume a {state} container",
    "start": "cannot start a {state} process",
    "update": "cannot update a {state} container",
}
_OF_STATE = {
    ("checkpoint", states.CREATED): "cannot checkpoint a task in created state",
    ("pause", states.CREATED): "cannot pause task in created state",
    ("resume", states.CREATED): "cannot resume task in created state",
    ("resume", states.RUNNING): "cannot resume a running process",
}


@contextmanager
def refused(of: Entry | Exec, step: str) -> Iterator[None]:
    """containerd's words for a step that the state does not allow."""
    try:
        yield
    except FailedPrecondition as err:
        table = states.TASK if isinstance(of, Entry) else states.EXEC
        if (of.state, step) in table:
            raise
        if step == "delete":
            raise FailedPrecondition(
                f"cannot delete a {of.state} process: failed precondition"
            ) from err
        words = _OF_STATE.get((step, of.state)) or _REFUSALS[step]
        raise Unknown(words.format(state=of.state)) from err


def of_runtime(error: LighterError, what: str) -> LighterError:
    """The runtime's own words as containerd passes them on; any other error unchanged."""
    said = error.details.get("said")
    if said is None and (match := _RUNTIME_SAID.match(error.message)):
        said = match[1]
    return error if said is None else Unknown(f"{what}: {said}")


def check_runtime(name: str) -> None:
    """Raises Unknown in containerd's words for a name that is none of a runtime here."""
    if name in NAMES or name.startswith("/"):
        return
    failed = "failed to start shim: failed to resolve runtime path"
    parts = name.split(".")
    if len(parts) < 2 or not all(parts):
        raise Unknown(
            f"{failed}: invalid runtime name {name}, correct runtime name should be either format "
            "like `io.containerd.runc.v1` or a full path to the binary"
        )
    shim = f"containerd-shim-{parts[-2]}-{parts[-1]}"
    raise Unknown(f'{failed}: runtime "{name}" binary not installed "{shim}": file does not exist')
