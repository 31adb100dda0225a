"""What tests look at in a machine: its containers, its scopes, its manager."""

import json
import signal
from typing import Any

from tests.census import LOOK_INSIDE
from tests.harness import await_that, settled
from tests.images import REFERENCE
from tests.lives import is_handled
from tests.systemd.machine import Machine

RESTART_S = 60.0
# Init of a container takes a signal only if it has a handler for it.
WAITS = ("sh", "-c", "trap exit TERM; while :; do sleep 1000 & wait $!; done")


def start(machine: Machine, name: str, *command: str, namespace: str = "default") -> int:
    """Run a detached container, which does something about SIGTERM; init's pid in the machine."""
    ctl = ("ctl", "-n", namespace)
    machine.run(*ctl, "run", "-d", REFERENCE, name, *(command or WAITS))
    pid = int(tasks(machine, namespace)[name]["pid"])
    status = ("cat", f"/proc/{pid}/status")
    await_that(
        lambda: is_handled(machine.run(*status).stdout, signal.SIGTERM), 30, f"{name} has its trap"
    )
    return pid


def tasks(machine: Machine, namespace: str = "default") -> dict[str, dict[str, Any]]:
    listed = machine.run("ctl", "-n", namespace, "tasks", "ls", "--format", "json").stdout
    return {task["id"]: task for task in json.loads(listed)}


def running(machine: Machine) -> dict[str, int]:
    """Name and pid of each container that runs."""
    return {n: task["pid"] for n, task in tasks(machine).items() if task["status"] == "running"}


def remove_all(machine: Machine) -> None:
    for name in tasks(machine):
        machine.run("ctl", "rm", "-f", name)


def nothing_is_left(machine: Machine) -> None:
    """Of containers, once all are removed. Raises AssertionError with what is."""
    settled(lambda: machine.run("sh", "-c", LOOK_INSIDE).stdout.splitlines())


def scopes(machine: Machine) -> set[str]:
    """The scopes of shims that are active."""
    listed = machine.run(
        *("systemctl", "list-units", "--plain", "--no-legend", "--state=active"),
        "lighter-shims-*.scope",
    ).stdout
    return {line.split()[0] for line in listed.splitlines()}


def await_scopes(machine: Machine, wanted: set[str]) -> None:
    await_that(
        lambda: scopes(machine) == wanted, 20, f"the scopes are {wanted}, not {scopes(machine)}"
    )


def shims(machine: Machine) -> dict[str, int]:
    """Container id and the shim's pid, of the shims that are connected."""
    listed = json.loads(machine.run("ctl", "system", "shims", "--format", "json").stdout)
    return {shim["id"]: shim["pid"] for shim in listed if shim["state"] == "connected"}


def await_manager(machine: Machine, other_than: int) -> int:
    """The next manager's pid, once it serves."""

    def serves() -> bool:
        return machine.main_pid() not in (0, other_than) and _answers(machine)

    await_that(serves, RESTART_S, f"a manager other than {other_than} serves")
    return machine.main_pid()


def _answers(machine: Machine) -> bool:
    return machine.run("ctl", "version", check=False).returncode == 0


def drop_in(machine: Machine, name: str, text: str) -> None:
    """Change lighterd.service as an administrator does; "" takes the change away."""
    path = machine.path(f"/etc/systemd/system/lighterd.service.d/{name}.conf")
    if text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    else:
        path.unlink()
    machine.run("systemctl", "daemon-reload")


def cgroup_of(machine: Machine, pid: int) -> str:
    """The path that systemd keeps a process under."""
    text = machine.run("cat", f"/proc/{pid}/cgroup").stdout
    return next(
        path
        for _, controllers, path in (line.split(":", 2) for line in text.splitlines())
        if controllers in ("", "name=systemd")
    )
