"""Lighter in a machine that has it, its manager enabled, and what tests ask of it there."""

import json
import shlex
from collections.abc import Sequence
from typing import Any

from tests.census import LOOK_INSIDE
from tests.images import REFERENCE
from tests.vm.machine import Done, Machine
from tests.vm.payload import MOUNT

INSTALL_S = 300.0
READY_S = 300.0
STATE_S = 180.0
CLEAR_S = 600.0
# As a first process it would not end at SIGTERM by itself.
IDLE = ("sh", "-c", "trap 'exit 3' TERM; sleep 1000 & wait")


class Installed:
    """A running manager in a machine. Ids of containers are chosen by the tests."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def await_start(self) -> "Installed":
        self.await_manager()
        # Ready is told before the spawner has loaded, which takes its time in an emulated machine.
        loaded = "journalctl -b -u lighterd | grep -q 'spawner loaded'"
        self.machine.await_that(loaded, READY_S, "the spawner has loaded")
        return self

    def import_image(self) -> "Installed":
        self.ctl("images", "import", f"{MOUNT}/image.tar")
        return self

    # ctl

    def ctl(self, *args: str, check: bool = True, timeout_s: float = 120) -> Done:
        return self.machine.run(["ctl", *args], check=check, timeout_s=timeout_s)

    def run(self, name: str, *command: str, flags: Sequence[str] = ()) -> int:
        """A detached container, an idle one without a command; its init's pid."""
        self.ctl("run", "-d", *flags, REFERENCE, name, *(command or IDLE))
        return int(self.task(name)["pid"])

    def tasks(self) -> dict[str, dict[str, Any]]:
        listed = json.loads(self.ctl("--format", "json", "tasks", "ls").stdout)
        return {row["id"]: row for row in listed}

    def task(self, name: str) -> dict[str, Any]:
        """The task as it is listed. Raises AssertionError when it is not."""
        tasks = self.tasks()
        assert name in tasks, f"no task {name}: {tasks}"
        return tasks[name]

    def await_status(self, name: str, status: str, timeout_s: float = STATE_S) -> dict[str, Any]:
        """The task when it has this status, for a shell in the guest watches it."""
        pattern = shlex.quote(f"^{name} .*{status.upper()}")
        self.machine.await_that(f"ctl tasks ls | grep -q {pattern}", timeout_s)
        return self.task(name)

    def has_told(self, topic: str, name: str) -> bool:
        """Whether there has been such an event of this container."""
        told = self.ctl("--format", "json", "events", "--since", "0", "--no-follow").text
        events = [json.loads(line) for line in told.splitlines()]
        return any(
            event["topic"] == topic and event["event"]["container_id"] == name for event in events
        )

    def clear(self) -> None:
        """Remove all containers. Raises AssertionError with what is left of any."""
        containers = self.ctl("containers", "ls", "-q").text.split()
        if containers:
            self.ctl("rm", "-f", *containers, timeout_s=CLEAR_S)
        try:
            self.machine.await_that(f'test -z "$({LOOK_INSIDE})"', STATE_S)
        except AssertionError as error:
            left = self.machine.run(LOOK_INSIDE, check=False).text
            raise AssertionError(f"left in the machine:\n{left}") from error

    # the service

    def main_pid(self) -> int:
        return int(self.show("lighterd.service", "MainPID"))

    def show(self, unit: str, name: str) -> str:
        return self.machine.run(["systemctl", "show", "--value", "-p", name, unit]).text

    def await_manager(self, but: int = 0) -> int:
        """Until a manager serves, another one than `but`; its pid."""
        self.machine.await_that(
            "systemctl is-active -q lighterd && "
            f'test "$(systemctl show --value -p MainPID lighterd)" != {but}',
            READY_S,
            "the manager serves",
        )
        return self.main_pid()

    def shim_of(self, name: str) -> int:
        found = self.machine.run(["pgrep", "-f", f"^lighter-shim .*--id {name}$"]).text.split()
        assert len(found) == 1, found
        return int(found[0])

    def unit_log(self) -> str:
        return self.machine.run("journalctl -b --no-pager -o cat -u lighterd").text

    # cgroup v2

    def cgroup_of(self, pid: int) -> str:
        """Its directory."""
        path = self.machine.read(f"/proc/{pid}/cgroup").strip().removeprefix("0::")
        return f"/sys/fs/cgroup{path}"
